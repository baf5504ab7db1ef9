"""Stage `pairs`: preference pairs out of graded samples, a right one against a wrong one of the same problem."""

import json
from collections.abc import Mapping
from pathlib import Path

from alignment_core.preference_pairs import mine_pairs, pairs_report
from alignment_core.records import Completion, GradedResponse, Problem, ScoredCompletion, read_jsonl, write_jsonl
from alignment_core.runs import RunContext
from alignment_core.stage_config import PairsStage

CONFIG = PairsStage


def run(config: PairsStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write pairs.jsonl and summary.json; no pair at all says what to change."""
    completions = read_jsonl(inputs["completions"] / "completions.jsonl", Completion)
    grades = read_jsonl(inputs["grades"] / "graded.jsonl", GradedResponse)
    asked = read_jsonl(inputs["completions"] / "problems.jsonl", Problem)
    scored = [
        ScoredCompletion(completion=completion, grade=grade)
        for completion, grade in zip(completions, grades, strict=True)
    ]
    pairs = mine_pairs(scored, asked, config.max_per_problem, config.seed, config.rejected)
    report = pairs_report(scored, pairs)
    if not pairs:
        raise ValueError(
            f"{len(scored)} samples of {report['problems']:.0f} problems give no pair: "
            f"{report['problems_all_right']:.0f} problems are all right and {report['problems_all_wrong']:.0f} all "
            "wrong; sample more questions or more times each, or start from another checkpoint"
        )
    write_jsonl(output / "pairs.jsonl", pairs)
    (output / "summary.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    run.emit(0, {f"pairs/{name}": value for name, value in report.items()})
