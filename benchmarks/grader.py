"""Speed and accuracy of the grader against math-verify called directly, same rows, same run.

    python -m benchmarks.grader [--data generations.jsonl] [--rounds 5] [--pairs] [--out result.json]

Rows come from JSONL files with `response`, `ground_truth` and, where known, `reference_reward` and `reward_fn` (the
published verdict), or else from a small set made here. Only rows in the strict format are compared: on the others
there is nothing to do. In each round every contestant takes all rows once, in turn, so that a slow minute of a shared
machine falls on all of them alike; a ratio is taken within a round, and the table shows its median and its spread.

- fast, thorough: `grade_batch`, row by row, from the whole response to the verdict; thorough asks its one child.
- pool of 1, pool of 2: `grade_batch` on batches of 256, fast, in child processes; rows/s are per child.
- math-verify: `parse` of both sides as `$...$` and `verify`, as its README has it and with its own time limits, on the
  answer that was already extracted: it is spared the search for the tags.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from alignment_core.config import RewardName
from alignment_core.grading import boxed_answer, tagged_answer
from alignment_core.rewards import grade_batch
from alignment_core.verdicts import GradingMode

BATCH = 256
BASE = "math-verify"
GOALS = {
    "fast / math-verify": (">=", 10.0, "rows/s of fast over those of math-verify, per core"),
    "fast p99 ms": ("<=", 5.0, "99th percentile of the time to a fast verdict, ms"),
    "pool overhead": ("<=", 0.10, "time of a pool of 1 over grading in process, batches of 256, minus 1"),
}


class Row(NamedTuple):
    """A formatted response, its gold, the answer in it, and the published verdict where it is known."""

    response: str
    gold: str
    answer: str
    published: bool | None


class Pass(NamedTuple):
    """One contestant's way over all rows in one round."""

    seconds: float
    """On the wall."""
    cpu_seconds: float
    """Of this process."""
    milliseconds: list[float]
    """Row by row; empty where rows go by the batch."""
    right: list[bool]


Contestant = Callable[[Sequence[Row]], Pass]


def main() -> None:
    """Measure, print the tables, write JSON if asked."""
    options = parse_arguments()
    result: dict[str, Any] = {"machine": machine()}
    if options.pairs:
        from benchmarks import answer_pairs

        pairs = answer_pairs.read_pairs()
        print(f"{len(pairs)} labelled pairs: wrong among unequal (FP) and equal (FN) ones\n{answer_pairs.table(pairs)}")
        result["pairs"] = {
            name: {kind: errors._asdict() for kind, errors in answer_pairs.count_errors(pairs, grader).items()}
            for name, grader in answer_pairs.graders().items()
        }
    else:
        rows = read_rows(options.data) if options.data else made_rows()
        print(f"{len(rows)} formatted rows, {options.rounds} rounds", flush=True)
        field = {name: entry for name, entry in contestants().items() if name in {BASE, *(options.only or [name])}}
        result |= measure(rows, options.rounds, field)
        print(table(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grader", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", help="JSONL files of graded generations; default: a made set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(","), help="contestants besides math-verify")
    parser.add_argument("--pairs", action="store_true", help="the table of labelled answer pairs instead")
    parser.add_argument("--out", type=Path, help="file for the numbers as JSON")
    return parser.parse_args()


# Rows


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """The formatted rows of the files, each under the reward it was graded by."""
    rows = []
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row.get("reward_fn", "r1_zero") == "r1_zero":
                    published = row.get("reference_reward", {}).get("reward")
                    rows += formatted_row(row["response"], str(row["ground_truth"]), published)
    return rows


def formatted_row(response: str, gold: str, published: float | None = None) -> list[Row]:
    """The row, or nothing if the response is not in the strict format."""
    answer = tagged_answer(response)
    if answer is None:
        return []
    if "\\boxed" in answer:
        answer = boxed_answer(answer) or ""
    return [Row(response, gold, answer.strip(), None if published is None else published == 1)]


def made_rows() -> list[Row]:
    """960 responses: numbers, fractions, roots, intervals, polynomials; a third of them right."""
    golds = []
    for n in range(2, 82):
        golds += [str(n), f"{n}.5", rf"\frac{{{n}}}{{7}}", rf"{n}\sqrt{{3}}", f"({n}, {n + 1}]", f"x^2+{n}x-1"]
    rows = []
    for index, gold in enumerate(golds):
        wrong = golds[(index + 6) % len(golds)]
        odd = gold.replace(r"\frac", r"\dfrac").replace(", ", ",") + ("" if index % 2 else " ")
        for answer in (wrong, odd if index % 3 else wrong + "0"):
            thinking = f"So we add {index} and {index + 1}, and then " * 12
            rows += formatted_row(f"{thinking}</think> <answer> \\boxed{{{answer}}} </answer>", gold)
    return rows


# Contestants


def by_row(judge: Callable[[Row], bool]) -> Contestant:
    """A contestant that is asked row by row, each on the clock."""

    def take(rows: Sequence[Row]) -> Pass:
        spent, right = [], []
        began, cpu = time.perf_counter(), time.process_time()
        for row in rows:
            before = time.perf_counter()
            right.append(judge(row))
            spent.append(1000 * (time.perf_counter() - before))
        return Pass(time.perf_counter() - began, time.process_time() - cpu, spent, right)

    return take


def by_batch(workers: int, mode: GradingMode = "fast", reward: RewardName = "r1_zero") -> Contestant:
    """`grade_batch` on batches of 256."""

    def take(rows: Sequence[Row]) -> Pass:
        right: list[bool] = []
        began, cpu = time.perf_counter(), time.process_time()
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            grades = grade_batch([row.response for row in batch], [row.gold for row in batch], reward, mode, workers)
            right += [grade.reward == 1 for grade in grades]
        return Pass(time.perf_counter() - began, time.process_time() - cpu, [], right)

    return take


def ours(mode: GradingMode) -> Callable[[Row], bool]:
    """`grade_batch` on one row."""
    return lambda row: grade_batch([row.response], [row.gold], mode=mode)[0].reward == 1


def math_verify() -> Callable[[Row], bool]:
    """math-verify called directly, as its README advises: gold and answer parsed, then verified."""
    from math_verify import parse, verify

    return lambda row: bool(verify(parse(f"${row.gold}$"), parse(f"${row.answer}$")))


def contestants() -> dict[str, tuple[int, Contestant]]:
    """Name -> (processes it keeps busy, contestant)."""
    return {
        "fast": (1, by_row(ours("fast"))),
        BASE: (1, by_row(math_verify())),
        "thorough": (1, by_row(ours("thorough"))),
        "in process, by 256": (1, by_batch(0)),
        "pool of 1": (1, by_batch(1)),
        "pool of 2": (2, by_batch(2)),
    }


# Measuring


def measure(rows: Sequence[Row], rounds: int, field: dict[str, tuple[int, Contestant]]) -> dict[str, Any]:
    """All contestants over all rows, `rounds` times in turn, after a short pass that starts what they need."""
    for _, take in field.values():
        take(rows[:BATCH])
    passes: dict[str, list[Pass]] = {name: [] for name in field}
    for number in range(rounds):
        for name, (_, take) in field.items():
            passes[name].append(take(rows))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    speeds = {
        name: [len(rows) / one.seconds / processes for one in passes[name]] for name, (processes, _) in field.items()
    }
    measured = {name: describe(passes[name], speeds[name], speeds[BASE], rows) for name in field}
    figures = {}
    if "fast" in field:
        figures["fast / math-verify"] = measured["fast"]["ratio"]
        figures["fast p99 ms"] = measured["fast"]["p99_ms"]
    if {"pool of 1", "in process, by 256"} <= set(field):
        both = zip(passes["pool of 1"], passes["in process, by 256"], strict=True)
        figures["pool overhead"] = spread([pool.seconds / alone.seconds - 1 for pool, alone in both])
    return {"rows": len(rows), "rounds": rounds, "contestants": measured, "figures": figures}


def describe(passes: list[Pass], speeds: list[float], base: list[float], rows: Sequence[Row]) -> dict[str, Any]:
    """Rows/s per core, ratio to math-verify within each round, percentiles, agreement with the published verdict."""
    known = [
        (row.published, said) for row, said in zip(rows, passes[0].right, strict=True) if row.published is not None
    ]
    entry: dict[str, Any] = {
        "rows_per_s_per_core": spread(speeds),
        "ratio": spread([own / other for own, other in zip(speeds, base, strict=True)]),
        "cpu_seconds": spread([one.cpu_seconds for one in passes]),
        "agreement": sum(a == b for a, b in known) / len(known) if known else None,
        "right": sum(passes[0].right),
    }
    if passes[0].milliseconds:
        for name, share in (("p50_ms", 0.50), ("p99_ms", 0.99), ("max_ms", 1.0)):
            entry[name] = spread([percentile(one.milliseconds, share) for one in passes])
    return entry


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(1000 * share) * len(ordered) // 1000) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum over the rounds."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    packages = {name: version(name) for name in ("math-verify", "sympy", "latex2sympy2_extended")}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load": load,
        **packages,
    }


def table(result: dict[str, Any]) -> str:
    """The numbers for people."""
    head = ("rows/s per core", "x math-verify", "(min - max)", "p50 ms", "p99 ms", "max ms", "published")
    lines = [f"{'':20}" + "".join(f"{name:>17}" for name in head)]
    for name, entry in result["contestants"].items():
        ratio = entry["ratio"]
        cells = [f"{entry['rows_per_s_per_core']['median']:,.0f}", f"{ratio['median']:.2f}"]
        cells.append(f"({ratio['min']:.2f} - {ratio['max']:.2f})")
        cells += [f"{entry[key]['median']:.3f}" if key in entry else "-" for key in ("p50_ms", "p99_ms", "max_ms")]
        cells.append("-" if entry["agreement"] is None else f"{100 * entry['agreement']:.2f} %")
        lines.append(f"{name:20}" + "".join(f"{cell:>17}" for cell in cells))
    lines.append("")
    for name, values in result["figures"].items():
        direction, goal, what = GOALS[name]
        met = values["median"] >= goal if direction == ">=" else values["median"] <= goal
        shown = f"{values['median']:.3f} ({values['min']:.3f} - {values['max']:.3f})"
        lines.append(f"{what:76} {shown:28} goal {direction} {goal:g}: {'yes' if met else 'NO'}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
