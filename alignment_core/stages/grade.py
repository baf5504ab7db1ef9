"""Stage `grade`: verdicts over completions and the evaluation report; never samples."""

import json
from collections.abc import Mapping
from pathlib import Path

from alignment_core.comparability import Terms
from alignment_core.evaluation import evaluate, failing_examples
from alignment_core.records import Completion, EvalReport, GradedResponse, Problem, read_jsonl, write_jsonl
from alignment_core.rewards import grade_stream
from alignment_core.runs import RunContext
from alignment_core.stage_config import GradeStage
from alignment_core.voting import count_votes

CONFIG = GradeStage
CHUNK = 512


def run(config: GradeStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write graded.jsonl (line by line with completions.jsonl), results.jsonl; {summary,terms,examples}.json."""
    completions = read_jsonl(inputs["completions"] / "completions.jsonl", Completion)
    asked = read_jsonl(inputs["completions"] / "problems.jsonl", Problem)
    by_id = {problem.id: problem for problem in asked}
    problems = [by_id[item.problem_id] for item in completions]
    rows = ((item.text, problem.ground_truth) for item, problem in zip(completions, problems, strict=True))
    grades: list[GradedResponse] = []
    for grade in grade_stream(rows, config.reward, config.mode, workers=1):
        grades.append(grade)
        if len(grades) % CHUNK == 0 or len(grades) == len(completions):
            so_far = sum(grade.reward for grade in grades) / len(grades)
            run.emit(len(grades), {"grade/accuracy": so_far}, total=len(completions))
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
    # Votes are counted where a model is judged; samples of train problems become training data, sample by sample.
    voting = len(completions) > len(asked) and config.split != "train"
    ballots = count_votes(completions, grades, config.reward, config.mode) if voting else []
    report = evaluate(asked, completions, grades, config.reward, ballots)
    examples = failing_examples(asked, completions, grades, reward=config.reward)
    (output / "summary.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
    terms = inputs["completions"] / "terms.json"
    if terms.is_file():
        asked_for = {"reward": config.reward, "mode": config.mode}
        told = Terms.model_validate_json(terms.read_bytes()).model_copy(update=asked_for)
        (output / "terms.json").write_text(told.model_dump_json(indent=1), encoding="utf-8")
    (output / "examples.json").write_text(json.dumps(examples, indent=1), encoding="utf-8")
    run.emit(len(grades), {f"eval/{config.split}/{name}": value for name, value in _metrics(report).items()})


def _metrics(report: EvalReport) -> dict[str, float]:
    """What curves and tables show of a report; how the two modes differ only where both were asked."""
    names = ["accuracy", "format_rate", "truncation_rate", "mean_length", "n_suspicious", "n_timeouts", "n_errors"]
    metrics = {name: float(getattr(report, name)) for name in names}
    if report.n_thorough_only is not None and report.n_fast_only is not None:
        metrics["thorough_only_share"] = report.n_thorough_only / report.n
        metrics["fast_only_share"] = report.n_fast_only / report.n
    metrics |= {f"pass_at_{one.k}": one.value for one in report.pass_at_k}
    return metrics | {f"maj_at_{one.k}": one.value for one in report.maj_at_k}
