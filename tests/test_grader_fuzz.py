"""What holds for every response whatsoever: properties, and a time-boxed fuzz.

python -m pytest tests/test_grader_fuzz.py
ALIGNFLOW_FUZZ_SECONDS=600 ALIGNFLOW_FUZZ_SEED=7 python -m pytest -m slow tests/test_grader_fuzz.py
"""

import json
import os
import random
import string
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from attack_kit import TAGGED
from attacks import attacks
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_core.rewards import grade_batch, question_only_reward_fn, r1_zero_reward_fn
from alignment_core.seeding import derive_seed

FUZZ_SECONDS = float(os.environ.get("ALIGNFLOW_FUZZ_SECONDS", "20"))
FUZZ_SEED = int(os.environ.get("ALIGNFLOW_FUZZ_SEED", "0"))
ITEM_SECONDS = 2.0
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "graded" / "generations_3294.jsonl"
PLAIN = string.ascii_letters + string.digits + " .,:;+-*/^=()[]{}|!?%$&_#@'\"\\"
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)

any_char = st.integers(0, 0x10FFFF).map(chr)
"""Lone surrogates, controls and all."""
PIECES = (
    "<answer>", "</answer>", "</think> <answer>", "</think>", "\\boxed{", "}", "{", "\\frac", "\\sqrt", "1/2", "4",
    " or ", ",", "^",
    "(", ")", "9^9", "!", "e9", "\\begin{pmatrix}", "\\text{",
)  # fmt: skip
piece = st.sampled_from(PIECES)
any_text = st.lists(st.one_of(any_char, piece, st.sampled_from(PLAIN)), max_size=60).map("".join)
plain_text = st.text(alphabet=PLAIN, min_size=1, max_size=80).filter(
    lambda text: "\\boxed" not in text and not text.isspace()
)
tagless = st.text(alphabet=PLAIN.replace("\\", ""), max_size=40)
"""Text that can neither hold nor complete a tag, nor a box."""
gold_text = st.one_of(any_text, st.integers(), st.floats(), st.lists(any_text, min_size=1, max_size=3))


def reward(answer: str, gold: Any) -> float:
    """The reward of an answer in the strict format."""
    return r1_zero_reward_fn(TAGGED.replace("{}", answer), gold)["reward"]


@SETTINGS
@given(response=any_text, gold=gold_text)
def test_any_text_whatsoever_gets_a_verdict(response: str, gold: Any) -> None:
    for function in (r1_zero_reward_fn, question_only_reward_fn):
        rewards = function(response, gold)
        assert set(rewards.values()) <= {0.0, 1.0}
        assert rewards["reward"] == rewards["answer_reward"] <= rewards["format_reward"]
    for name in ("number", "countdown"):
        (grade,) = grade_batch([response], [gold], name)  # type: ignore[arg-type]
        assert {grade.format_reward, grade.reward} <= {0.0, 1.0}
        json.loads(grade.model_dump_json())


@SETTINGS
@given(answer=plain_text)
def test_an_answer_equal_to_its_gold_is_right(answer: str) -> None:
    assert reward(answer, answer) == 1.0
    if not set(answer) & set("{}"):
        assert reward(rf"\boxed{{{answer}}}", answer) == 1.0


@SETTINGS
@given(answer=plain_text, gold=plain_text)
def test_white_space_around_an_answer_changes_nothing(answer: str, gold: str) -> None:
    wanted = reward(answer, gold)
    for left, right in (("", " "), ("\n", ""), ("\t  ", "\r\n")):
        assert reward(f"{left}{answer}{right}", gold) == wanted
    assert reward(answer, f" {gold}\n") == wanted


@SETTINGS
@given(response=any_text, before=tagless, after=tagless)
def test_no_added_text_makes_a_response_formatted(response: str, before: str, after: str) -> None:
    if r1_zero_reward_fn(response, "4")["format_reward"] == 0.0:
        assert r1_zero_reward_fn(before + response + after, "4")["format_reward"] == 0.0
    if "\\boxed{" not in response:
        assert question_only_reward_fn(before + response + after, "4")["format_reward"] == 0.0


@SETTINGS
@given(answer=plain_text, gold=plain_text, tail=tagless)
def test_an_unformatted_response_earns_nothing(answer: str, gold: str, tail: str) -> None:
    for frame in ("{}", "<answer> {} </answer>", "</think><answer> {} </answer>", "</think> <answer> {}"):
        rewards = r1_zero_reward_fn(frame.replace("{}", answer) + tail, answer)
        assert set(rewards.values()) == {0.0}
    assert set(question_only_reward_fn(answer + tail, answer).values()) == {0.0}


@st.composite
def spelt(draw: st.DrawFn) -> str:
    """A number, spelt in one of the usual ways."""
    upper, lower = draw(st.integers(-999, 999)), draw(st.integers(2, 99))
    value = Fraction(upper, lower)
    plain = [str(upper), str(value), f"{upper}.{lower:02}", f"{upper}x+{lower}"]
    return draw(st.sampled_from([*plain, rf"\frac{{{upper}}}{{{lower}}}", rf"{upper}\sqrt{{{lower}}}"]))


@SETTINGS
@given(left=spelt(), right=spelt())
def test_equality_of_numbers_has_no_direction(left: str, right: str) -> None:
    assert reward(left, right) == reward(right, left)


@SETTINGS
@given(upper=st.integers(-999, 999), lower=st.integers(2, 99), off=st.integers(1, 9))
def test_another_number_is_wrong(upper: int, lower: int, off: int) -> None:
    for frame in ("{}", r"\frac{{{}}}{{997}}", r"{}\sqrt{{7}}", "{}.5", "({}, 3)", "{}x+1"):
        assert reward(frame.format(upper + off), frame.format(upper)) == 0.0
        assert reward(frame.format(upper), frame.format(upper)) == 1.0
    assert reward(rf"{upper}\sqrt{{{lower}}}", rf"{upper + off}\sqrt{{{lower}}}") == 0.0


# Fuzz


def mutated(draw: random.Random, seeds: list[str]) -> str:
    """A text with a few pieces doubled, dropped, swapped or brought in from another."""
    text = draw.choice(seeds)
    for _ in range(draw.randint(1, 6)):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.choice((0, 1, 1, 2, 5, 20)))
        other = draw.choice(seeds)
        begin = draw.randrange(len(other) + 1)
        borrowed = other[begin : begin + draw.choice((1, 3, 10, 60))]
        doubled = text[start:end] * draw.choice((2, 3, 50, 2_000))
        changes = ("", doubled, borrowed, chr(draw.randrange(0x110000)), draw.choice(PLAIN), draw.choice(PIECES))
        piece = draw.choice(changes)
        text = (text[:start] + piece + text[end:])[:200_000]
    return text


def real_answers() -> tuple[list[str], list[str]]:
    """Answers and golds of real generations, where they lie beside the checkout."""
    if not REAL.is_file():
        return [r"\frac{3}{4}", "12 apples", r"x \in (1, 2]", "3.50"], ["0.75", "12", "(1,2]", "3.5"]
    with REAL.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row["response"][-300:] for row in rows], [row["ground_truth"] for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(FUZZ_SECONDS + 120)
def test_fuzz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mutations of real responses, golds and attacks; the message of a failure holds what reproduces it."""
    answers, golds = real_answers()
    hostile = [attack.answer for attack in attacks(tmp_path / "canary") if isinstance(attack.answer, str)]
    draw = random.Random(derive_seed(FUZZ_SEED, "grader fuzz"))
    count, right, slowest, ends = 0, 0, 0.0, time.monotonic() + FUZZ_SECONDS
    while time.monotonic() < ends:
        gold = draw.choice(golds) if draw.random() < 0.5 else mutated(draw, golds + hostile)
        seeds = draw.choice((answers, hostile, [gold or "4"]))
        answer = mutated(draw, seeds)
        response = answer if draw.random() < 0.1 else TAGGED.replace("{}", answer)
        began = time.thread_time()
        rewards = draw.choice((r1_zero_reward_fn, question_only_reward_fn))(response, gold)
        seconds = time.thread_time() - began
        assert set(rewards.values()) <= {0.0, 1.0}, (response[-2_000:], gold[:2_000])
        assert seconds <= ITEM_SECONDS, f"{seconds:.2f} s: {(response[-2_000:], gold[:2_000])!r}"
        count, right, slowest = count + 1, right + int(rewards["reward"]), max(slowest, seconds)
    assert not (tmp_path / "canary").exists()
    assert count > 5 * FUZZ_SECONDS
    with capsys.disabled():
        print(f"\n{count} mutated responses in {FUZZ_SECONDS:g} s, {right} right, slowest {1000 * slowest:.0f} ms")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "thorough"])
def test_fuzz_through_a_child(mode: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Many mutations in one batch; one that exceeds its limit is a timeout and the rest goes on."""
    answers, golds = real_answers()
    hostile = [attack.answer for attack in attacks(tmp_path / "canary") if isinstance(attack.answer, str)]
    draw = random.Random(derive_seed(FUZZ_SEED, "grader fuzz", mode))
    count = 300 if mode == "fast" else 60
    responses = [TAGGED.replace("{}", mutated(draw, draw.choice((answers, hostile)))) for _ in range(count)]
    truths = [draw.choice(golds) for _ in responses]
    grades = grade_batch(responses, truths, mode=mode, workers=1, timed=True)
    for place, grade in enumerate(grades):
        if (grade.milliseconds or 0.0) > 1000 * ITEM_SECONDS:  # slow again, unless the machine stood still
            (grades[place],) = grade_batch([responses[place]], [truths[place]], mode=mode, workers=1, timed=True)
    assert len(grades) == len(responses)
    for response, grade in zip(responses, grades, strict=True):
        assert grade.milliseconds is not None
        assert grade.milliseconds <= 1000 * ITEM_SECONDS, response[-2_000:]
        assert grade.reward in {0.0, 1.0}
        assert grade.status == "ok" or grade.reward == 0.0
    late = sum(grade.status != "ok" for grade in grades)
    with capsys.disabled():
        slowest = max(grade.milliseconds or 0.0 for grade in grades)
        print(f"\n{mode}: {len(grades)} mutated responses, {late} timeouts or errors, slowest {slowest:.0f} ms")
