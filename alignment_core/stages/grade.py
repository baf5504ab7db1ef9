"""Stage `grade`: verdicts over completions and the evaluation report; never samples."""

import json
from collections.abc import Mapping
from pathlib import Path

from alignment_core.evaluation import evaluate, failing_examples
from alignment_core.records import Completion, Problem, read_jsonl, write_jsonl
from alignment_core.rewards import grade_batch
from alignment_core.runs import RunContext
from alignment_core.stage_config import GradeStage

CONFIG = GradeStage
CHUNK = 512


def run(config: GradeStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write graded.jsonl (line by line with completions.jsonl), results.jsonl, summary.json, examples.json."""
    completions = read_jsonl(inputs["completions"] / "completions.jsonl", Completion)
    asked = read_jsonl(inputs["completions"] / "problems.jsonl", Problem)
    by_id = {problem.id: problem for problem in asked}
    problems = [by_id[item.problem_id] for item in completions]
    grades = []
    for start in range(0, len(completions), CHUNK):
        texts = [item.text for item in completions[start : start + CHUNK]]
        truths = [problem.ground_truth for problem in problems[start : start + CHUNK]]
        grades += grade_batch(texts, truths, config.reward, thorough=config.thorough)
        so_far = sum(grade.reward for grade in grades) / len(grades)
        run.emit(len(grades), {"grade/accuracy": so_far}, total=len(completions))
    grades = [grade.model_copy(update={"milliseconds": None}) for grade in grades]
    write_jsonl(output / "graded.jsonl", grades)
    with (output / "results.jsonl").open("w", encoding="utf-8") as file:
        for problem, completion, grade in zip(problems, completions, grades, strict=True):
            row = {
                "id": problem.id,
                "sample": completion.sample_index,
                "question": problem.question,
                "response": completion.text,
                "ground_truth": problem.ground_truth,
                "tokens": len(completion.response_ids),
                "finish_reason": completion.finish_reason,
                **grade.model_dump(exclude_none=True),
            }
            file.write(json.dumps(row) + "\n")
    report = evaluate(asked, completions, grades, config.reward)
    examples = failing_examples(asked, completions, grades, reward=config.reward)
    (output / "summary.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
    (output / "examples.json").write_text(json.dumps(examples, indent=1), encoding="utf-8")
    names = ("accuracy", "format_rate", "truncation_rate", "mean_length", "n_suspicious", "n_timeouts")
    run.emit(len(grades), {f"eval/{config.split}/{name}": float(getattr(report, name)) for name in names})
