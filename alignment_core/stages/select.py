"""Stage `select`: correct completions as the next SFT set, by token ids or, across tokenizers, as text."""

import json
from collections.abc import Mapping
from pathlib import Path

from alignment_core.records import (
    Completion,
    GradedResponse,
    Problem,
    ScoredCompletion,
    TokenExample,
    read_jsonl,
    write_jsonl,
)
from alignment_core.runs import RunContext
from alignment_core.selection import select_correct, selection_report
from alignment_core.stage_config import SelectStage

CONFIG = SelectStage


def run(config: SelectStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write examples.jsonl (or traces.jsonl) and summary.json; an empty selection says what to change."""
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
            "sample more questions or more times each (expert_iteration.questions_per_step and group_size, "
            "distillation.questions and samples_per_problem), or start from a checkpoint that knows the format"
        )
    if config.as_text:
        asked = {one.id: one for one in read_jsonl(inputs["completions"] / "problems.jsonl", Problem)}
        write_jsonl(output / "traces.jsonl", (as_trace(asked[item.completion.problem_id], item) for item in kept))
    else:
        write_jsonl(output / "examples.jsonl", map(as_example, kept))
    (output / "summary.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    run.emit(0, {f"select/{name}": float(value) for name, value in report.items()})


def as_example(item: ScoredCompletion) -> TokenExample:
    """A kept completion by its ids."""
    completion = item.completion
    return TokenExample(
        problem_id=completion.problem_id, prompt_ids=completion.prompt_ids, response_ids=completion.response_ids
    )


def as_trace(problem: Problem, item: ScoredCompletion) -> Problem:
    """A kept completion as a problem's trace."""
    return problem.model_copy(
        update={"id": f"{problem.id}#{item.completion.sample_index}", "trace": item.completion.text}
    )
