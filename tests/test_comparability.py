"""Whether a number may stand beside a published one, and what is said where it may not."""

from pathlib import Path

import pytest

from alignment_core.comparability import (
    KINDS,
    MOST,
    PUBLISHED_R1_ZERO,
    Terms,
    asked_terms,
    beside_published,
    compare_with,
    evaluation_set,
    published_numbers,
    questions_digest,
)
from alignment_core.config import SamplingConfig
from alignment_core.problems import load_problems
from alignment_core.prompts import read_template, template_sha256
from alignment_core.records import Problem
from alignment_core.stage_config import SampleStage

PUBLISHED = published_numbers()
MODEL = "Qwen/Qwen2.5-Math-1.5B"
MATH = PUBLISHED.set_named("MATH 5K")
OURS = Terms(
    template_sha256=PUBLISHED_R1_ZERO,
    questions_sha256=MATH.questions_sha256,
    n_problems=5000,
    temperature=1.0,
    top_p=1.0,
    max_tokens=1024,
    stop=("</answer>",),
    reward="r1_zero",
    mode="fast",
)
WORDS = {
    "zero-shot": "zero-shot", "sft": "sft", "ei": "expert iteration", "grpo": ("grpo", "dapo"), "dpo": "dpo",
    "leaderboard": "leaderboard",
}  # fmt: skip
"""How the method of a number of this kind begins."""
ZERO_SHOT = next(one for one in PUBLISHED.numbers if one.accuracy == 2.72)


def test_the_same_terms_are_comparable() -> None:
    found = compare_with(OURS, ZERO_SHOT, MODEL)
    assert (found.comparable, found.label) == (True, "comparable")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"template_sha256": "0" * 64}, "template (sha256 000000000000 here, 56213732da87 there)"),
        ({"template_sha256": None}, "template (not known on both sides)"),
        ({"shots": 4}, "worked examples (4 here, 0 there)"),
        (
            {"questions_sha256": "f" * 64, "n_problems": 500},
            "evaluation set (another set, of 500 here, MATH 5K (5000) there)",
        ),
        (
            {"questions_sha256": PUBLISHED.set_named("MATH-500").questions_sha256, "n_problems": 500},
            "evaluation set (MATH-500 (500) here, MATH 5K (5000) there)",
        ),
        ({"temperature": 0.0}, "temperature (0 here, 1 there)"),
        ({"top_p": 0.95}, "top_p (0.95 here, 1 there)"),
        ({"max_tokens": 512}, "max_tokens (512 here, 1024 there)"),
        ({"min_tokens": 4}, "min_tokens (4 here, 0 there)"),
        ({"stop": ()}, "stop (none here, '</answer>' there)"),
        ({"stop": ("\nQuestion:", "</answer>")}, "stop ('\\nQuestion:', '</answer>' here, '</answer>' there)"),
        ({"reward": "number"}, "reward (number here, r1_zero there)"),
        ({"reward": None}, "reward (not told here, r1_zero there)"),
        ({"mode": "thorough"}, "grader (thorough here; published verdicts are those of the fast mode)"),
    ],
)
def test_what_differs_is_said(change: dict[str, object], words: str) -> None:
    found = compare_with(OURS.model_copy(update=change), ZERO_SHOT, MODEL)
    assert found.label == f"not comparable: {words}"


def test_several_differences_are_all_said() -> None:
    found = compare_with(OURS.model_copy(update={"temperature": 0.5, "shots": 1}), ZERO_SHOT, "other/model")
    assert len(found.differs) == 3
    assert found.differs[-1] == f"start model (other/model here, {MODEL} there)"


def test_what_a_report_leaves_open_is_no_agreement() -> None:
    unknown = next(one for one in PUBLISHED.numbers if one.max_tokens is None)
    assert "max_tokens (1024 here, not told there)" in compare_with(OURS, unknown).differs
    private = next(one for one in PUBLISHED.numbers if one.evaluation_set == "MATH with numeric answers")
    found = compare_with(OURS.model_copy(update={"questions_sha256": None, "n_problems": 3199}), private)
    assert any("whose rows are not public" in text for text in found.differs)


def test_the_order_of_stop_strings_is_no_difference() -> None:
    other = OURS.model_copy(update={"stop": ("\n\n", "</answer>")})
    number = ZERO_SHOT.model_copy(update={"stop": ("</answer>", "\n\n")})
    assert compare_with(other, number, MODEL).comparable


def test_the_leaderboard_fixes_the_prompt_and_leaves_the_rest_open() -> None:
    board = [one for one in PUBLISHED.numbers if one.kind == "leaderboard"]
    assert {one.accuracy for one in board} == {68.75, 67.12, 66.5, 65.88, 40.0}
    (best,) = [one for one in board if one.accuracy == 68.75]
    assert best.evaluation_set == "MATH 5K, a subset of 1,024"
    # 68.75 % is 704 of 1,024, and no number of right answers among 5,000: nothing on MATH 5K is beside it.
    assert best.accuracy / 100 == 704 / 1024
    assert [one for one in board if not round(50 * one.accuracy, 6).is_integer()] == [best]
    for number in board:
        differs = compare_with(OURS, number, MODEL).differs
        doubts = [text.partition(" ")[0] for text in differs if "not told there" in text]
        assert doubts == ["top_p", "min_tokens", "stop"]
        assert not any(text.startswith(("template", "temperature", "max_tokens", "reward")) for text in differs)


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        ("zero-shot", {"zero-shot"}),
        ("sft", {"sft"}),
        ("ei", {"ei"}),
        ("grpo", {"grpo", "leaderboard"}),
        ("dpo", set()),
        ("plain", set()),
    ],
)
def test_a_number_stands_beside_its_own_kind(method: str, kinds: set[str]) -> None:
    found = beside_published(OURS, MODEL, method=method)
    assert {one.published.kind for one in found} == kinds
    assert len(found) <= max(MOST, sum(one.comparable for one in found))


def test_of_a_kind_the_same_benchmark_is_told() -> None:
    part = OURS.model_copy(update={"questions_sha256": "f" * 64, "n_problems": 200})

    def benchmarks(terms: Terms, benchmark: str | None) -> list[str]:
        found = beside_published(terms, MODEL, method="grpo", benchmark=benchmark)
        return [PUBLISHED.set_named(one.published.evaluation_set).benchmark for one in found]

    assert benchmarks(part, "gsm8k") == ["gsm8k"] * 2
    assert benchmarks(part, None) == ["math"] * MOST  # nothing is of no benchmark: in the order of the file
    assert benchmarks(part, "math") == ["math"] * MOST
    gsm8k = part.model_copy(update={"questions_sha256": PUBLISHED.set_named("GSM8K test").questions_sha256})
    assert benchmarks(gsm8k, "math") == ["gsm8k"] * 2  # what the rows are counts, not what they are called


def test_comparable_numbers_stand_first() -> None:
    found = beside_published(OURS, "/models/Qwen2.5-Math-1.5B")
    flags = [one.comparable for one in found]
    assert flags == sorted(flags, reverse=True)
    assert 0 < sum(flags) < len(flags) == len(PUBLISHED.numbers)
    assert {one.published.evaluation_set for one in found if one.comparable} == {"MATH 5K"}


def test_the_quoted_numbers_are_whole() -> None:
    names = {one.name for one in PUBLISHED.sets}
    assert len(names) == len(PUBLISHED.sets)
    for number in PUBLISHED.numbers:
        assert number.evaluation_set in names
        assert 0 < number.accuracy < 100
        assert number.source
        assert number.template_sha256 in {PUBLISHED_R1_ZERO, None}
    stated = {(one.method, one.accuracy) for one in PUBLISHED.numbers}
    assert ("leaderboard, best entry", 68.75) in stated
    for number in PUBLISHED.numbers:
        assert (number.kind in KINDS) is (number.kind != "leaderboard")
        assert number.method.lower().startswith(WORDS[number.kind])
    assert len({(one.source, one.method, one.evaluation_set) for one in PUBLISHED.numbers}) == len(PUBLISHED.numbers)


def test_a_set_is_what_its_rows_are(shared_data: Path) -> None:
    def known(path: str, kind: str, only_500: bool = False) -> str | None:
        problems = load_problems(str(shared_data / path), kind, "test", "{question}", [])
        if only_500:
            problems = [one for one in problems if one.meta.get("in_math500")]
        found = evaluation_set(OURS.model_copy(update={"questions_sha256": questions_digest(problems)}))
        assert found is None or found.n == len(problems)
        return found and found.name

    assert known("gsm8k/test.jsonl", "gsm8k") == "GSM8K test"
    assert known("math/test.jsonl", "math") == known("math/course_validation.jsonl", "math") == "MATH 5K"
    assert known("math/test.jsonl", "math", only_500=True) == "MATH-500"
    assert known("gsm8k/train.jsonl", "gsm8k") is None


def test_the_digest_feels_a_missing_question_and_no_order() -> None:
    problems = [Problem(id=str(i), question=f"{i}?", prompt="", ground_truth="1") for i in range(3)]
    assert questions_digest(problems) == questions_digest(problems[::-1])
    assert (
        questions_digest(problems) != questions_digest(problems[:2]) != questions_digest([*problems[:2], problems[0]])
    )


def test_the_published_template_is_told_by_its_bytes(shared_data: Path) -> None:
    template = read_template(str(shared_data / "prompts" / "r1_zero.prompt"))
    assert template_sha256(template) == PUBLISHED_R1_ZERO
    assert template_sha256(read_template("reasoning")) != PUBLISHED_R1_ZERO
    stage = SampleStage(sampling=SamplingConfig(), split="test", seed=0)
    assert asked_terms(stage, [], template).template_sha256 == PUBLISHED_R1_ZERO
    assert asked_terms(stage, [], None).template_sha256 is None
