"""The reward functions: formats, answers, flags, and agreement with real graded generations.

Run: pytest tests/test_rewards.py
"""

import json
import re
import time
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignment_core.rewards import (
    grade_batch,
    grade_stream,
    parse_gsm8k_response,
    parse_mmlu_response,
    question_only_reward_fn,
    r1_zero_reward_fn,
)

RIGHT = {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0}
WRONG = {"format_reward": 1.0, "answer_reward": 0.0, "reward": 0.0}
EIGHT = " r </think> <answer> 8 </answer>"
UNFORMATTED = {"format_reward": 0.0, "answer_reward": 0.0, "reward": 0.0}


@pytest.mark.parametrize(
    ("response", "ground_truth", "rewards"),
    [
        (" r </think> <answer> 8 </answer>", "8", RIGHT),
        (" r </think> <answer> 8 </answer>", 8, RIGHT),
        (" r </think> <answer> 8 </answer>", 8.0, RIGHT),
        (" r </think> <answer> 8 </answer>", ["7", "8"], RIGHT),
        (" r </think> <answer> 8 </answer>", r"so $\boxed{8}$", RIGHT),
        (r" r </think> <answer> it is \boxed{8}. </answer>", "8", RIGHT),
        (" r </think> <answer> 9 </answer>", "8", WRONG),
        (r" r </think> <answer> \boxed{8 </answer>", "8", WRONG),
        (" r </think> <answer></answer>", "8", WRONG),
        (" r </think>\n<answer> 8 </answer>", "8", UNFORMATTED),
        (r" r </think> \boxed{8}", "8", UNFORMATTED),
        ("", "8", UNFORMATTED),
    ],
)
def test_r1_zero(response: str, ground_truth: str | int | float | list[str], rewards: dict[str, float]) -> None:
    assert r1_zero_reward_fn(response, ground_truth) == rewards


@pytest.mark.parametrize(
    ("response", "ground_truth", "rewards"),
    [
        (r"so \boxed{8}", "8", RIGHT),
        (r"\boxed{7}, no, \boxed{8}", "8", RIGHT),
        (r"\boxed{8}, no, \boxed{7}", "8", WRONG),
        (r"so \boxed{8", "8", UNFORMATTED),
        (" r </think> <answer> 8 </answer>", "8", UNFORMATTED),
        (r"<answer> \boxed{8} </answer>", ["8"], RIGHT),
    ],
)
def test_question_only(response: str, ground_truth: str | list[str], rewards: dict[str, float]) -> None:
    assert question_only_reward_fn(response, ground_truth) == rewards


@pytest.mark.parametrize(
    "ground_truth",
    [
        np.int64(8), np.float32(8), Decimal("8"), Decimal("8.0"), Fraction(8), np.array(["7", "8"]), np.array([7, 8]),
        np.array(8), (7, 8), [np.float32(0.1), 8], [np.int32(7), Fraction(8)],
        torch.tensor([7, 8]), np.array([7.5, 8.0], dtype=np.float32), np.str_("8"),
    ],
)  # fmt: skip
def test_gold_answers_of_many_types(ground_truth: Any) -> None:
    assert r1_zero_reward_fn(EIGHT, ground_truth) == RIGHT
    assert r1_zero_reward_fn(EIGHT.replace("8", "9"), ground_truth) == WRONG
    assert grade_batch([EIGHT], [ground_truth], "number", workers=1)[0].reward == 1


@pytest.mark.parametrize(
    ("responses", "truths", "error", "said"),
    [
        ([EIGHT, None], ["8", "8"], TypeError, "response 1 is a NoneType: give a text"),
        ([EIGHT, b"8"], ["8", "8"], TypeError, "response 1 is a bytes"),
        ([EIGHT, EIGHT], ["8", None], TypeError, "ground truth 1 holds NoneType: give a text"),
        ([EIGHT, EIGHT], ["8", {"8": 1}], TypeError, "ground truth 1 holds dict"),
        ([EIGHT, EIGHT], ["8", b"8"], TypeError, "ground truth 1 holds bytes"),
        ([EIGHT, EIGHT], ["8", [["8"]]], TypeError, "ground truth 1 holds list"),
        ([EIGHT, EIGHT], ["8", [1j]], TypeError, "ground truth 1 holds complex"),
        ([EIGHT, EIGHT], ["8", np.eye(2)], TypeError, "ground truth 1 holds ndarray"),
        ([EIGHT, EIGHT], ["8", []], ValueError, "ground truth 1 is empty: give at least one"),
        (EIGHT, ["8"], TypeError, "responses is a str: give a list"),
        ([EIGHT], "8", TypeError, "ground_truths is a str: give a list"),
        (iter([EIGHT]), ["8"], TypeError, "responses is a list_iterator: give a list; grade_stream"),
        ([EIGHT], ["8", "8"], ValueError, "1 responses but 2 ground truths"),
    ],
)
def test_what_cannot_be_graded_is_named(responses: Any, truths: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        grade_batch(responses, truths)


def test_a_stream_numbers_its_rows_and_workers_are_no_fewer_than_0() -> None:
    rows: list[Any] = [*[(EIGHT, "8")] * 5, (EIGHT, None)]
    with pytest.raises(TypeError, match="ground truth 5 holds"):
        list(grade_stream(rows, chunk=2))
    for workers in (-1, 0.5):
        with pytest.raises(ValueError, match="give 0 to grade in this process"):
            grade_batch([EIGHT], ["8"], workers=workers)  # type: ignore[arg-type]


def test_long_lists_of_golds_take_bounded_time() -> None:
    golds = [f"x+{number}" for number in range(100_000)]
    started = time.process_time()
    assert r1_zero_reward_fn(EIGHT.replace("8", "y+3"), golds) == WRONG
    assert time.process_time() - started < 2
    assert r1_zero_reward_fn(EIGHT.replace("8", "x+999"), golds) == RIGHT
    assert r1_zero_reward_fn(EIGHT.replace("8", "x+1000"), golds) == WRONG


def test_number_reward() -> None:
    cases: list[tuple[str, Any, float, float]] = [
        ("She pays 3 * $4.50 = $13.50.", "13.5", 1.0, 1.0),
        ("It is 1,000 in all", "1000", 1.0, 1.0),
        ("72", "73", 1.0, 0.0),
        ("no idea", "72", 0.0, 0.0),
        ("x = -3", -3, 1.0, 1.0),
        ("half, 0.5", "1/2", 1.0, 1.0),
        ("72", "seventy-two", 1.0, 0.0),
        ("1" * 100_000, "1", 1.0, 0.0),
    ]
    grades = grade_batch([case[0] for case in cases], [case[1] for case in cases], reward="number")
    assert [(grade.format_reward, grade.reward) for grade in grades] == [case[2:] for case in cases]
    assert grades[0].extracted == "13.50"
    assert grades[0].method == "number"


@pytest.mark.parametrize(
    ("answer", "reward"),
    [("8*(7-4)", 1.0), ("23 + 1", 0.0), ("8 * 3", 0.0), ("24", 0.0), ("(7 - 4) * 8 * 1", 0.0), ("9**9**9", 0.0)],
)
def test_countdown_asks_for_the_problems_own_numbers(answer: str, reward: float) -> None:
    (grade,) = grade_batch([f"so </think> <answer> {answer} </answer>"], ["(7 - 4) * 8"], "countdown")
    assert (grade.format_reward, grade.answer_reward, grade.reward) == (1.0, reward, reward)
    (bare,) = grade_batch([answer], ["(7 - 4) * 8"], "countdown")
    assert (bare.format_reward, bare.reward) == (0.0, 0.0)


def test_grades_tell_what_was_extracted_and_which_test_decided() -> None:
    responses = [
        " r </think> <answer> 8 </answer>",
        " r </think> <answer> 8,000 </answer>",
        " r </think> <answer> 9 </answer>",
        r" r </think> <answer> \boxed{9 </answer>",
        "9",
    ]
    grades = grade_batch(responses, ["8", "8000", "8", "8", "8"])
    assert [grade.extracted for grade in grades] == ["8", "8,000", "9", None, None]
    assert [grade.method for grade in grades] == ["string", "symbolic", "none", "none", "none"]
    assert {grade.status for grade in grades} == {"ok"}
    assert all(grade.milliseconds is None for grade in grades)
    assert all((grade.milliseconds or 0) > 0 for grade in grade_batch(responses, ["8"] * 5, timed=True))


def test_the_thorough_mode_tells_what_the_fast_one_says() -> None:
    pytest.importorskip("math_verify", reason="thorough grading needs math-verify: install it to run this test")
    answers = ["8", "2/4", "5 m", "7", r"\boxed{8", "(2,1),(1,2)"]
    golds = ["8", "1/2", r"5\text{ cm}", "8", "8", "(1,2),(2,1)"]
    responses = [f" r </think> <answer> {answer} </answer>" for answer in answers]
    grades = grade_batch(["8", *responses], ["8", *golds], mode="thorough")
    assert [(grade.fast_reward, grade.reward) for grade in grades] == [
        (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 1.0),
    ]  # fmt: skip
    assert [grade.reward for grade in grade_batch(["8", *responses], ["8", *golds])] == [
        grade.fast_reward for grade in grades
    ]
    assert grades[2].method == "forms"


def test_extracted_text_can_be_stored() -> None:
    response = " </think> <answer>" + "\ud800" + "7" * 5000 + "</answer>"
    (grade,) = grade_batch([response], ["7"])
    assert grade.extracted is not None
    assert len(grade.extracted) == 1000
    assert grade.model_dump_json()


@pytest.mark.parametrize(
    ("response", "suspicious"),
    [
        (" r </think> <answer> 3 </answer>", False),
        (" r </think> <answer> 3 </answer>\n", False),
        (" r </think> <answer> 3 or 4 </answer>", True),
        (" r </think> <answer> 3, 4 </answer>", True),
        (" r </think> <answer> 3 </answer> <answer> 4 </answer>", True),
        (" r <answer> 3 </think> <answer> 4 </answer>", True),
        (" r </think> </think> <answer> 4 </answer>", True),
        (" r </think> <answer> 4 </answer> and more", True),
        (" r </think>\n<answer> 4 </answer> and more", False),
    ],
)
def test_suspicious_tags(response: str, suspicious: bool) -> None:
    assert grade_batch([response], ["3"])[0].suspicious is suspicious


@pytest.mark.parametrize(
    ("answer", "gold", "reward", "suspicious"),
    [
        ("<answer> 7 </answer> <answer> 8 </answer>", "8", 1.0, True),
        ("<answer> 8 </answer> <answer> 7 </answer>", "8", 0.0, True),
        ("<answer> 7 </answer> 8", "78", 1.0, True),
        ("<answer> 8 </answer> 8", "8", 0.0, True),
        (r"<answer> 7 or 9, so \boxed{8} </answer>", "8", 1.0, False),
        (r"<answer> \boxed{7} or \boxed{8} </answer>", "8", 1.0, True),
        (r"<answer> \boxed{8} or \boxed{7} </answer>", "8", 0.0, True),
        (r"<answer> 8\text{ or 9} </answer>", "8", 1.0, True),
        ("<answer> 8 or 9 </answer>", "8", 0.0, True),
        ("<answer> 8, 9 </answer>", "8", 0.0, True),
        ("<answer> 8 and 9 </answer>", "9", 0.0, True),
        ("<answer> 48, 24, 72 </answer>", "72", 0.0, True),
        ("<answer> 48 + 24 </answer>", "72", 0.0, False),
        ("<answer> </answer>", "8", 0.0, False),
        ("<answer>  </answer>", "", 0.0, False),
        (r"<answer> \boxed{} </answer>", "8", 0.0, False),
        (r"<answer> \text{} </answer>", "8", 0.0, False),
        ("<answer> 8 <answer> </answer>", "8", 0.0, True),
    ],
)
def test_what_the_strict_gate_accepts_of_tricks(answer: str, gold: str, reward: float, suspicious: bool) -> None:
    (grade,) = grade_batch([f" r </think> {answer}"], [gold])
    assert (grade.format_reward, grade.reward, grade.suspicious) == (1.0, reward, suspicious)


def test_an_answer_inside_the_thinking_counts_where_nothing_comes_later_and_is_flagged() -> None:
    early = "I think </think> <answer> 8 </answer>"
    (grade,) = grade_batch([f"<answer> 7 {early}"], ["8"])
    assert (grade.reward, grade.suspicious) == (1.0, True)
    (unformatted,) = grade_batch(["<answer> 8 </answer> </think>"], ["8"])
    assert (unformatted.format_reward, unformatted.reward) == (0.0, 0.0)


GSM8K_FORMS = ["12", "12.", "12.0", "12.00", "$12", r"\$12", "12 apples", "$12.00"]


@pytest.mark.parametrize("form", GSM8K_FORMS)
@pytest.mark.parametrize("gold", ["12", 12, ["11", "12"]])
def test_gsm8k_forms(form: str, gold: str | int | list[str]) -> None:
    assert r1_zero_reward_fn(f" r </think> <answer> {form} </answer>", gold)["reward"] == 1.0
    assert r1_zero_reward_fn(f" r </think> <answer> {form} </answer>", "13")["reward"] == 0.0
    assert grade_batch([f"It is {form}"], [gold], "number")[0].reward == 1.0


@pytest.mark.parametrize("form", ["1,200", "$1,200", "1200", "1,200.00"])
def test_gsm8k_thousands(form: str) -> None:
    assert r1_zero_reward_fn(f" r </think> <answer> {form} </answer>", "1200")["reward"] == 1.0
    assert r1_zero_reward_fn(f" r </think> <answer> {form} </answer>", "1,200")["reward"] == 1.0


def test_gsm8k_forms_that_only_the_thorough_verdict_accepts() -> None:
    pytest.importorskip("math_verify", reason="thorough grading needs math-verify: install it to run this test")
    forms = ["1,200 apples", "12 eggs", "$12 per day", "12 apples"]
    golds: list[str | int | float | list[str]] = ["1200", "12", 12, 12.0]
    responses = [f" r </think> <answer> {form} </answer>" for form in forms]
    assert [grade.reward for grade in grade_batch(responses, golds, mode="thorough")] == [1.0] * 4
    assert [grade.reward for grade in grade_batch(responses, golds)] == [0.0] * 4


def test_suspicious_boxes_and_gold_lists() -> None:
    def flag(response: str, gold: str) -> bool:
        return grade_batch([response], [gold], reward="question_only")[0].suspicious

    assert flag(r"\boxed{3} or \boxed{4}", "3")
    assert not flag(r"\boxed{3}, that is \boxed{3}", "3")
    assert not flag(r"\boxed{3, 4}", "3,4")
    assert flag(r"\boxed{3, 4, 5}", "3,4")


def test_misuse_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="give one for each"):
        grade_batch(["a"], [])
    with pytest.raises(ValueError, match="choose one of fast, thorough"):
        grade_batch([], [], mode="slow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose one of r1_zero"):
        grade_batch([], [], reward="boxed")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Natalia sold 48/2 = 24 clips, 72 in all.", "72"),
        ("$1,018.50.", "1018.50"),
        ("-7", "-7"),
        ("\u22127", "-7"),
        ("10-3", "3"),
        ("1,2345", "2345"),
        ("3,4", "4"),
        ("-.5", "-.5"),
        ("seventy-two", None),
        ("", None),
        ("12", "12"),
        ("12.", "12"),
        ("12.0", "12.0"),
        ("$12", "12"),
        ("1,200", "1200"),
        ("12 apples", "12"),
    ],
)
def test_parse_gsm8k_response(text: str, number: str | None) -> None:
    assert parse_gsm8k_response(text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The correct answer is B. There is only one.", "B"),
        ("answer: (D)", "D"),
        ("First I thought the answer is A. The answer is C", "C"),
        ("C", "C"),
        ("(C)", "C"),
        ("A. one hundred", "A"),
        ("The answer is unknown.", "D"),
        ("The correct answer is 10000 polyomaviruses.", None),
        ("The answer is A or B", None),
        ("A cat sat", None),
        ("The answer is a guess", None),
        ("E", None),
        ("", None),
    ],
)
def test_parse_mmlu_response(text: str, letter: str | None) -> None:
    example = {"subject": "virology", "question": "How many?", "options": ["100", "1", "10", "unknown"], "answer": "A"}
    assert parse_mmlu_response(example, text) == letter


def test_a_long_gap_before_an_option_does_not_stall_the_parser() -> None:
    started = time.process_time()
    assert parse_mmlu_response({}, "the answer" + " " * 30_000 + "?") is None
    assert parse_mmlu_response({}, "the answer" + " " * 30_000 + "B") == "B"
    assert time.process_time() - started < 1


def test_agrees_with_the_published_grader_on_real_generations(shared_data: Path) -> None:
    lines = (shared_data / "graded" / "generations_3294.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 3294
    functions = {"r1_zero": r1_zero_reward_fn, "question_only": question_only_reward_fn}
    started = time.process_time()
    rewards = [functions[row["reward_fn"]](row["response"], row["ground_truth"]) for row in rows]
    assert time.process_time() - started < 10
    differing = [
        (row["response"][-80:], row["ground_truth"])
        for row, ours in zip(rows, rewards, strict=True)
        if ours != row["reference_reward"]
    ]
    assert differing == []


def test_real_traces_grade_as_published(shared_data: Path) -> None:
    lines = (shared_data / "sft" / "r1_math_1767.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    rows = [json.loads(line) for line in lines]
    grades = grade_batch([row["response"] for row in rows], [row["ground_truth"] for row in rows])
    counts = Counter((grade.format_reward, grade.reward) for grade in grades)
    assert counts == {(1.0, 1.0): 1408, (1.0, 0.0): 31, (0.0, 0.0): 328}
