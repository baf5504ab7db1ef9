"""Evaluation results in the files that EleutherAI's lm-evaluation-harness writes under `--log_samples`.

The layout is that of lm-eval 0.4.13: `samples_TASK_DATE.jsonl`, a line per problem, and `results_DATE.json`. A line has
doc_id, doc, target (text), arguments {gen_args_0: {arg_0: prompt, arg_1: generation settings}}, resps (one request, its
repeats), filtered_resps (the extracted answers), filter, the names of its metrics, each metric's value, and the sha256
of doc, prompt and target. Texts of the files are ours; a reader made for the harness's files finds its fields in them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment_core.comparability import Terms
from alignment_core.records import EvalReport, Problem

LAYOUT = "lm-eval 0.4.13"
FILTER = "none"
METRICS = ("exact_match", "format")
Row = Mapping[str, Any]
"""A line of a grade artifact's results.jsonl."""


def write_lm_eval(
    folder: Path,
    task: str,
    date: str,
    problems: Sequence[Problem],
    rows: Sequence[Row],
    terms: Terms,
    report: EvalReport,
) -> list[Path]:
    """Write both files; `task` and `date` (of no underscore) become part of their names. Returns their paths.

    Raises ValueError if a row answers a problem that is not given.
    """
    if "_" in date or "/" in task:
        raise ValueError(f"task {task!r} and date {date!r} name files: no slash in the one, no underscore in the other")
    folder.mkdir(parents=True, exist_ok=True)
    samples, results = folder / f"samples_{task}_{date}.jsonl", folder / f"results_{date}.json"
    # A lone surrogate, which no UTF-8 can hold, becomes the escape that JSON has for it.
    with samples.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for line in sample_lines(problems, rows, terms):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    told = json.dumps(results_table(task, report, terms), indent=2, ensure_ascii=False)
    results.write_text(told + "\n", encoding="utf-8", errors="backslashreplace")
    return [samples, results]


def sample_lines(problems: Sequence[Problem], rows: Sequence[Row], terms: Terms) -> Iterator[dict[str, Any]]:
    """One line per problem, in order; a problem's samples are the repeats of its one request."""
    of_problem: dict[str, list[Row]] = {problem.id: [] for problem in problems}
    for row in rows:
        if row["id"] not in of_problem:
            raise ValueError(
                f"a result answers problem {row['id']!r}, which is not given: take both from one evaluation"
            )
        of_problem[row["id"]].append(row)
    for number, problem in enumerate(problems):
        yield sample_line(number, problem, of_problem[problem.id], terms)


def sample_line(number: int, problem: Problem, samples: Sequence[Row], terms: Terms) -> dict[str, Any]:
    """The line of one problem. A metric is the mean over its samples."""
    doc = {"id": problem.id, "question": problem.question, "answer": problem.ground_truth, **problem.meta}
    answers = [str(row.get("extracted") or "") for row in samples]
    values = (_mean(row["answer_reward"] for row in samples), _mean(row["format_reward"] for row in samples))
    return {
        "doc_id": number,
        "doc": doc,
        "target": problem.ground_truth,
        "arguments": {"gen_args_0": {"arg_0": problem.prompt, "arg_1": generation_settings(terms)}},
        "resps": [[row["response"] for row in samples]],
        "filtered_resps": answers if len(answers) == 1 else [answers],
        "filter": FILTER,
        "metrics": list(METRICS),
        "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": sha256(problem.prompt),
        "target_hash": sha256(problem.ground_truth),
        **dict(zip(METRICS, values, strict=True)),
    }


def generation_settings(terms: Terms) -> dict[str, Any]:
    """Sampling under the harness's names."""
    return {
        "until": list(terms.stop),
        "do_sample": terms.temperature > 0,
        "temperature": terms.temperature,
        "top_p": terms.top_p,
        "max_gen_toks": terms.max_tokens,
    }


def results_table(task: str, report: EvalReport, terms: Terms) -> dict[str, Any]:
    """The harness's results file, as far as it has a counterpart here. The standard error is that of the mean over
    problems: half the Wilson interval, in standard errors."""
    error = (report.accuracy_high - report.accuracy_low) / (2 * 1.959963984540054)
    return {
        "results": {
            task: {
                "alias": task,
                f"exact_match,{FILTER}": report.accuracy,
                f"exact_match_stderr,{FILTER}": error,
                f"format,{FILTER}": report.format_rate,
            }
        },
        "n-shot": {task: terms.shots},
        "higher_is_better": {task: dict.fromkeys(METRICS, True)},
        "n-samples": {task: {"original": terms.n_problems, "effective": terms.n_problems}},
        "config": {"layout": LAYOUT, "terms": terms.model_dump(mode="json")},
    }


def sha256(text: str) -> str:
    """Hexadecimal digest of a text; lone surrogates, which a model may write, count as question marks."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _mean(values: Iterator[float]) -> float:
    known = list(values)
    return sum(known) / len(known)
