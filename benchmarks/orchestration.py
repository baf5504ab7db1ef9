"""What the machinery around the mathematics costs: keys, store, checkpoints, and a study's stages.

    python -m benchmarks.orchestration [--repetitions 3] [--only keys,store,checkpoint,study] [--out result.json]

Every repetition takes each part once, in turn, so that a slow minute of a shared machine falls on all of them alike.
The table shows minimum, median and maximum; the median is held against the goal. Nothing is left behind: the work
lies in a temporary folder (`--folder` chooses its disk), which needs about 3 GB.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.orchestration_parts import StudyBench, measure_checkpoint, measure_keys, measure_store

GOALS: dict[str, tuple[str, str, float]] = {
    "key_study_ms": ("key of a stage, mean over a study of 60 in a new process, ms of CPU", "<=", 20.0),
    "key_mean_ms": ("key of a stage, mean of the first of each kind, ms of CPU", "<=", 20.0),
    "key_again_ms": ("key of a stage of a kind already seen, ms of CPU", "<=", 20.0),
    "lookup_hit_ms": ("lookup of a key that is there, 10,000 artifacts, ms", "<=", 5.0),
    "lookup_missing_ms": ("lookup of a key that never was, 10,000 artifacts, ms", "<=", 5.0),
    "lookup_deleted_ms": ("lookup of a deleted artifact, 10,000 artifacts, ms", "<=", 5.0),
    "explain_first_ms": ("why a key is new, label never seen, ms", "<=", 20.0),
    "explain_oldest_ms": ("why a key is new, against the oldest of 10,000, ms", "<=", 20.0),
    "find_ms": ("artifact by the beginning of its key, ms", "<=", 100.0),
    "checkpoint_share": ("checkpoint of 1 GB, write + verify: share of plain write + fsync", ">=", 0.70),
    "stage_overhead_s": ("a stage over calling the core directly, s", "<=", 0.5),
    "cached_running_s": ("60 cached stages, server running, whole process, s", "<=", 10.0),
    "cached_cold_s": ("60 cached stages, no server yet, whole process, s", "<=", 25.0),
}
"""Measure -> what it is, direction, goal."""

Sample = dict[str, float]


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    options = parse_arguments()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="orchestration-", dir=options.folder))
    samples: list[Sample] = []
    study = StudyBench(folder / "study") if "study" in options.only else None
    try:
        parts: dict[str, Callable[[], Sample]] = {
            "keys": measure_keys,
            "store": lambda: measure_store(folder / "store"),
            "checkpoint": lambda: measure_checkpoint(folder / "checkpoint"),
        }
        if study is not None:
            parts["study"] = study.measure
        for repetition in range(options.repetitions):
            for name in options.only:
                print(f"repetition {repetition + 1} of {options.repetitions}: {name}", file=sys.stderr, flush=True)
                samples.append(parts[name]())
    finally:
        if study is not None:
            study.close()
        shutil.rmtree(folder)
    result = summarize(samples)
    print(table(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    names = ("keys", "store", "checkpoint", "study")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(names), help=",".join(names))
    parser.add_argument("--out", type=Path, help="file for the numbers as JSON")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made: the disk to be measured")
    options = parser.parse_args()
    unknown = [name for name in options.only if name not in names]
    if unknown:
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(names)}")
    return options


def summarize(samples: list[Sample]) -> dict[str, dict[str, object]]:
    """Measure -> goal, spread and verdict, for what was measured; what has no goal is shown without one."""
    by_name: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in sample.items():
            by_name.setdefault(name, []).append(value)
    result: dict[str, dict[str, object]] = {}
    for name in [*GOALS, *(name for name in by_name if name not in GOALS)]:
        if name not in by_name:
            continue
        values = by_name[name]
        middle = statistics.median(values)
        entry: dict[str, object] = {"min": min(values), "median": middle, "max": max(values), "n": len(values)}
        if name in GOALS:
            what, direction, goal = GOALS[name]
            met = middle <= goal if direction == "<=" else middle >= goal
            entry |= {"what": what, "goal": f"{direction} {goal:g}", "met": met}
        result[name] = entry
    return result


def table(result: dict[str, dict[str, object]]) -> str:
    """The numbers for people, one measure a line."""
    lines = [f"{'measure':68} {'goal':>8} {'min':>9} {'median':>9} {'max':>9}  met"]
    for name, entry in result.items():
        numbers = " ".join(f"{entry[key]:9.3g}" for key in ("min", "median", "max"))
        met = ("yes" if entry["met"] else "NO") if "met" in entry else "-"
        lines.append(f"{entry.get('what', name)!s:68} {entry.get('goal', '')!s:>8} {numbers}  {met}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
