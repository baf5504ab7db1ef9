"""Stage `import_pairs`: preference pairs that others wrote, under the study's prompt."""

import json
from collections.abc import Mapping
from pathlib import Path

from alignment_core.leakage import case_and_space_free, held_out_questions
from alignment_core.preference_pairs import parse_pair
from alignment_core.problem_sources import read_rows
from alignment_core.records import PreferencePair, write_jsonl
from alignment_core.runs import RunContext
from alignment_core.stage_config import ImportPairsStage
from alignment_core.stages.splits import read_split

CONFIG = ImportPairsStage


def run(config: ImportPairsStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write pairs.jsonl and summary.json. Pairs over questions of dev or test are left out, and counted aloud."""
    rows = read_rows(config.source, "train")
    held_out = held_out_questions(*(read_split(inputs["problems"], split) for split in ("dev", "test")))
    kept: list[PreferencePair] = []
    left_out: list[str] = []
    for row in rows:
        pair, question = parse_pair(row, config.template, config.render_prompts)
        asked = held_out.get(case_and_space_free(question if question is not None else pair.prompt))
        if asked is None:
            kept.append(pair)
        else:
            left_out.append(f"line {row.line} asks {asked}")
    if not kept:
        raise ValueError(f"{config.source}: all {len(rows)} pairs are over dev and test problems: give other ones")
    write_jsonl(output / "pairs.jsonl", kept)
    report = {"rows": len(rows), "pairs": len(kept), "held_out": len(left_out)}
    (output / "summary.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    run.emit(0, {f"pairs/{name}": float(value) for name, value in report.items()})
    if left_out:
        run.say(f"left out {len(left_out)} of {len(rows)} pairs over held-out problems, the first: {left_out[0]}")
