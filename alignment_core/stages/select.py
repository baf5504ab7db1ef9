"""Stage `select`: correct completions as the next SFT set, by token ids."""

import json
from collections.abc import Mapping
from pathlib import Path

from alignment_core.config import SelectStage
from alignment_core.records import Completion, GradedResponse, ScoredCompletion, read_jsonl, write_jsonl
from alignment_core.runs import RunContext
from alignment_core.selection import select_correct, selection_report
from alignment_core.stages.artifacts import TokenExample

CONFIG = SelectStage


def run(config: SelectStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write examples.jsonl and summary.json; an empty selection is an error that says what to change."""
    completions = read_jsonl(inputs["completions"] / "completions.jsonl", Completion)
    grades = read_jsonl(inputs["grades"] / "graded.jsonl", GradedResponse)
    scored = [
        ScoredCompletion(completion=completion, grade=grade)
        for completion, grade in zip(completions, grades, strict=True)
    ]
    kept = select_correct(scored, config.max_correct_per_question, config.seed)
    report = selection_report(scored, kept)
    if not kept:
        raise ValueError(
            f"none of {len(scored)} samples is right, so there is nothing to fine-tune on: "
            "raise expert_iteration.questions_per_step or group_size, or start from an SFT checkpoint"
        )
    examples = (
        TokenExample(
            problem_id=item.completion.problem_id,
            prompt_ids=item.completion.prompt_ids,
            response_ids=item.completion.response_ids,
        )
        for item in kept
    )
    write_jsonl(output / "examples.jsonl", examples)
    (output / "summary.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    run.emit(0, {f"select/{name}": float(value) for name, value in report.items()})
