"""Traces that others wrote: prompts in templates, missing golds, and both real trace sets."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment_core.grading import compare
from alignment_core.problem_sources import RawRow, read_rows
from alignment_core.prompts import question_of, read_template
from alignment_core.records import Problem
from alignment_core.rewards import grade_batch
from alignment_core.row_parsers import any_parser, to_problem
from alignment_core.traces import question_in

THINK = "User: {question}\nAssistant: <think>"
PARSE = any_parser(False)


def problem(row: dict[str, Any], template: str = THINK) -> Problem:
    """What a row becomes under a template."""
    return to_problem(PARSE(RawRow("t.jsonl", 1, row)), "1", template)


@pytest.mark.parametrize(
    "prompt",
    [
        "A talk.\n\nUser: 1+1?\nAssistant: <think>",
        "User: 1+1?\nAssistant:",
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "<|im_start|>system\nBox it.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n",
        "Below is a task.\n\n### Instruction:\n1+1?\n\n### Response:\n",
    ],
)
def test_a_prompt_that_embeds_a_template_yields_its_question(prompt: str) -> None:
    assert question_in(prompt) == "1+1?"
    found = problem({"prompt": prompt, "response": "<think> 2 </think> <answer> 2 </answer>"})
    assert (found.question, found.prompt) == ("1+1?", "User: 1+1?\nAssistant: <think>")
    assert (found.trace, found.ground_truth) == (" 2 </think> <answer> 2 </answer>", "2")


@pytest.mark.parametrize(
    "prompt",
    [
        "1+1?",
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n",
        "### Instruction: none",
    ],
)
def test_a_prompt_of_another_shape_is_asked_as_it_is(prompt: str) -> None:
    found = problem({"prompt": prompt, "response": "so \\boxed{2}"})
    assert (found.question, found.prompt, found.trace) == (prompt, prompt, "so \\boxed{2}")


def test_a_prompt_by_the_studys_own_template_yields_its_question() -> None:
    template = read_template("question_only")
    prompt = template.replace("{question}", "1+1?")
    assert question_of(prompt, template) == "1+1?"
    found = problem({"prompt": prompt, "response": "so \\boxed{2}"}, template)
    assert (found.question, found.prompt, found.ground_truth) == ("1+1?", prompt, "2")
    assert question_of("1+1?", "{question}") is None
    assert question_of("1+1? ", "{question} {question}") is None
    assert question_of("another prompt", template) is None


@pytest.mark.parametrize("gold", [None, "", "  "])
def test_a_trace_without_a_gold_is_kept_and_noted(gold: str | None) -> None:
    row = {"problem": "1+1?", "reasoning_trace": "2</think> <answer>2</answer>", "extracted_answer": "2"}
    parsed = PARSE(RawRow("t.jsonl", 1, row | {"expected_answer": gold}))
    assert parsed.gold.strip() == ""
    assert parsed.care[-1][0] == "gold answer is empty"
    assert to_problem(parsed, "1", THINK).trace == " 2</think> <answer>2</answer>"


def test_a_trace_file_without_the_column_is_refused() -> None:
    with pytest.raises(ValueError, match="no field `expected_answer`"):
        PARSE(RawRow("t.jsonl", 1, {"problem": "1+1?", "reasoning_trace": "2"}))


def real(shared_data: Path, name: str) -> list[dict[str, Any]]:
    """Rows of a real trace set."""
    return [dict(row.fields) for row in read_rows(str(shared_data / "sft" / name), "train")]


def test_real_r1_rows_with_and_without_their_ground_truth(shared_data: Path) -> None:
    rows = real(shared_data, "r1_math_1767.jsonl")
    template = read_template("reasoning")
    told = [problem(row, template) for row in rows]
    silent = [problem({"prompt": row["prompt"], "response": row["response"]}, template) for row in rows]
    assert [one.trace for one in silent] == [one.trace for one in told] == [row["response"] for row in rows]
    assert {one.question for one in silent} == {one.question for one in told}
    assert not any("<think>" in one.question or "User:" in one.question for one in silent)
    verdicts = grade_batch([one.trace or "" for one in told], [one.ground_truth for one in told])
    assert sum(verdict.reward for verdict in verdicts) == 1408
    # Without a ground truth the gold is the response's own answer: right by itself wherever it is formatted.
    own = grade_batch([one.trace or "" for one in silent], [one.ground_truth for one in silent])
    assert sum(v.reward == v.format_reward == 1 for v in own) >= 0.99 * sum(v.format_reward for v in verdicts)


def test_real_reasoning_traces(shared_data: Path) -> None:
    rows = real(shared_data, "gptoss120b_math_4836.json")
    made = [problem(row, read_template("reasoning")) for row in rows]
    written = [row["reasoning_trace"] for row in rows]
    assert [one.trace for one in made] == [text if text[0].isspace() else f" {text}" for text in written]
    assert [one.meta["extracted_answer"] for one in made] == [row["extracted_answer"] for row in rows]
    assert sum(not one.ground_truth for one in made) == 1
    verdicts = grade_batch([one.trace or "" for one in made], [one.ground_truth for one in made])
    # Four right answers stand without the exact tags: 4,542 by the set's own extraction.
    assert sum(verdict.reward for verdict in verdicts) == 4538
    own = [compare(row["extracted_answer"], row["expected_answer"]) for row in rows]
    assert sum(verdict.correct for verdict in own) == 4542
    opened = problem(rows[0], read_template("question_only"))
    assert opened.trace == f"<think> {rows[0]['reasoning_trace']}"
    assert json.loads(opened.model_dump_json())["ground_truth"] == rows[0]["expected_answer"]
