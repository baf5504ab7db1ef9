r"""Rewards of a response: format, answer, and the reward trained on, over the one answer parser in `grading`.

- `r1_zero`: the strict tag format `</think> <answer>...</answer>`; reward = answer reward.
- `question_only`: no tags, the answer is the last `\boxed{...}`.
- `number`: the last number of the response against the gold, numerically; for plain question-answer accuracy.
- `countdown`: the tag format; the answer is an expression worth what the gold is, over the gold's numbers.

A response is `suspicious` (a flag for a person, no part of the reward) when it may play the gate: several
answer blocks or thinking ends, an answer tag inside the thinking, text after the answer, several different
boxes, or more values listed than the gold has ("3 or 4").
"""

import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from alignment_core import countdown
from alignment_core.config import RewardName
from alignment_core.grading import (
    GroundTruth,
    Verdict,
    boxed_answer,
    compare,
    count_options,
    gold_answers,
    tagged_answer,
)
from alignment_core.records import GradedResponse

MAX_STORED = 1_000
"""Characters of the extracted answer kept in a record."""
MAX_DIGITS = 400
"""Length of the longest number that is compared."""


def r1_zero_reward_fn(response: str, ground_truth: GroundTruth, fast: bool = True) -> dict[str, float]:
    r"""Rewards (0.0 or 1.0) under the strict tag format: `format_reward`, `answer_reward`, `reward`.

    The answer is what follows the last `<answer>`, or the last `\boxed{...}` in it. `fast=False` asks math-verify too
    (ImportError if it is not installed). A list of gold answers means any of them.
    """
    return _as_dict(_grade_tagged(response, ground_truth, not fast))


def question_only_reward_fn(response: str, ground_truth: GroundTruth, fast: bool = True) -> dict[str, float]:
    r"""Rewards (0.0 or 1.0) of the last `\boxed{...}` of the response; all zero if there is none."""
    return _as_dict(_grade_boxed(response, ground_truth, not fast))


def grade_batch(
    responses: Sequence[str],
    ground_truths: Sequence[GroundTruth],
    reward: RewardName = "r1_zero",
    thorough: bool = False,
    timed: bool = False,
) -> list[GradedResponse]:
    """One verdict per response, in order.

    `thorough` also asks math-verify, in a child process (ImportError if not installed); `timed` fills in
    `milliseconds`. Raises ValueError for an unknown reward or lists of different lengths.
    """
    if reward not in _GRADERS:
        raise ValueError(f"no reward {reward!r}: choose one of {', '.join(_GRADERS)}")
    if len(responses) != len(ground_truths):
        raise ValueError(f"{len(responses)} responses but {len(ground_truths)} ground truths: give one for each")
    grades = []
    for response, ground_truth in zip(responses, ground_truths, strict=True):
        started = time.perf_counter()
        grade = _GRADERS[reward](response, ground_truth, thorough)
        if timed:
            grade = grade.model_copy(update={"milliseconds": 1000 * (time.perf_counter() - started)})
        grades.append(grade)
    return grades


def _grade_tagged(response: str, ground_truth: GroundTruth, thorough: bool) -> GradedResponse:
    answer = tagged_answer(response)
    if answer is None:
        return _UNFORMATTED
    if "\\boxed" in answer:
        answer = boxed_answer(answer)
    suspicious = _plays_with_tags(response) or _lists_more(answer, ground_truth)
    return _graded(answer, ground_truth, thorough, suspicious)


def _grade_boxed(response: str, ground_truth: GroundTruth, thorough: bool) -> GradedResponse:
    answer = boxed_answer(response)
    if answer is None:
        return _UNFORMATTED
    boxes = {box.strip() for box in _PLAIN_BOX.findall(response)}
    return _graded(answer, ground_truth, thorough, len(boxes) > 1 or _lists_more(answer, ground_truth))


def _grade_number(response: str, ground_truth: GroundTruth, thorough: bool) -> GradedResponse:
    """`thorough` changes nothing here: numbers are compared exactly."""
    answer = parse_gsm8k_response(response)
    if answer is None:
        return _UNFORMATTED
    value = _rational(answer)
    correct = value is not None and value in map(_rational, gold_answers(ground_truth))
    return _record(answer, Verdict(correct, "number" if correct else "none"), suspicious=False)


def _grade_countdown(response: str, ground_truth: GroundTruth, thorough: bool) -> GradedResponse:
    """`thorough` changes nothing here: values are exact, and the numbers used are part of the task."""
    answer = tagged_answer(response)
    if answer is None:
        return _UNFORMATTED
    correct = any(countdown.solves(answer.strip(), gold) for gold in gold_answers(ground_truth))
    return _record(answer, Verdict(correct, "countdown" if correct else "none"), _plays_with_tags(response))


_GRADERS: Mapping[str, Callable[[str, GroundTruth, bool], GradedResponse]] = {
    "r1_zero": _grade_tagged,
    "question_only": _grade_boxed,
    "number": _grade_number,
    "countdown": _grade_countdown,
}
_UNFORMATTED = GradedResponse(format_reward=0.0, answer_reward=0.0, reward=0.0)
_PLAIN_BOX = re.compile(r"\\boxed\{([^{}]*)\}")


def _graded(answer: str | None, ground_truth: GroundTruth, thorough: bool, suspicious: bool) -> GradedResponse:
    """The record for a formatted response; `answer` is None where its box is not closed."""
    verdict = Verdict(False) if answer is None else compare(answer, ground_truth, thorough)
    return _record(answer, verdict, suspicious)


def _record(answer: str | None, verdict: Verdict, suspicious: bool) -> GradedResponse:
    correct = float(verdict.correct)
    return GradedResponse(
        format_reward=1.0,
        answer_reward=correct,
        reward=correct,
        extracted=None if answer is None else _storable(answer),
        method=verdict.method,
        status=verdict.status,
        suspicious=suspicious,
    )


def _storable(text: str) -> str:
    """Short, and free of the lone surrogates that UTF-8 cannot carry."""
    return text.strip()[:MAX_STORED].encode("utf-8", "replace").decode("utf-8")


def _as_dict(grade: GradedResponse) -> dict[str, float]:
    return {
        "format_reward": grade.format_reward,
        "answer_reward": grade.answer_reward,
        "reward": grade.reward,
    }


def _plays_with_tags(response: str) -> bool:
    """Several blocks or thinking ends, an answer tag inside the thinking, or text after the answer."""
    thinking = response.partition("</think>")[0]
    after = response.rpartition("</answer>")[2]
    repeated = any(response.count(tag) > 1 for tag in ("<answer>", "</answer>", "</think>"))
    return repeated or "<answer>" in thinking or bool(after.strip())


def _lists_more(answer: str | None, ground_truth: GroundTruth) -> bool:
    if answer is None:
        return False
    return count_options(answer) > max(map(count_options, gold_answers(ground_truth)), default=1)


_NUMBER = re.compile(r"[.\d](?:(?<=\d)(?:\d{0,2}(?:,\d{3})+(?!\d)|\d*)(?:\.\d+)?|(?<=\.)\d+)", re.ASCII)
"""A number without its sign. It begins with a plain character class, which the engine finds four times faster."""
_SIGN = re.compile(r"(?<![\w.)])-$")
"""A minus that does not follow an operand."""


def parse_gsm8k_response(model_output: str) -> str | None:
    """The last number of the text as a string without thousands commas; None if there is no number.

    >>> parse_gsm8k_response("so she makes 9 * 2 = $1,018.50 every day.")
    '1018.50'
    """
    text = model_output.replace("\u2212", "-")
    last = deque(_NUMBER.finditer(text), maxlen=1)
    if not last:
        return None
    start = last[0].start()
    sign = "-" if _SIGN.search(text[max(0, start - 2) : start]) else ""
    return sign + last[0][0].replace(",", "")


def _rational(text: str) -> Fraction | None:
    """The number a short text spells (`1,000`, `$5`, `3/4`, `2.50`), exactly; None if it is none."""
    plain = re.sub(r"[\s,$%]", "", text)
    if len(plain) > MAX_DIGITS or not re.fullmatch(r"[+-]?(?:\d+/0*[1-9]\d*|\d+\.?\d*|\.\d+)", plain, re.ASCII):
        return None
    return Fraction(plain)


_STATED_CHOICE = re.compile(
    r"(?:answer|option|choice)(?:\s+(?:is|would\s+be|should\s+be))?\s*(?::\s*)?[*(\[{]*([A-D])(?![\w'])(?!\s*(?:or|and|/|,)\s*[A-D]\b)",
    re.IGNORECASE,
)
_LONE_CHOICE = re.compile(r"\W*([A-D])(?:\W*|[.):]\s.*)", re.DOTALL)


def parse_mmlu_response(mmlu_example: Mapping[str, object], model_output: str) -> str | None:
    """The option letter a response chooses, "A" to "D"; None if it names none or several.

    Read in this order: the last "answer is X" (also "option X", "answer: (X)"), a response that is or begins with
    a lone letter, the exact text of one of `mmlu_example["options"]` after "answer is".
    """
    stated = [match[1] for match in _STATED_CHOICE.finditer(model_output) if match[1].isupper()]
    if stated:
        return stated[-1]
    lone = _LONE_CHOICE.fullmatch(model_output.strip())
    if lone:
        return lone[1]
    options = mmlu_example.get("options")
    claim = model_output.rpartition("answer is")[2].strip(" .:*\n").casefold()
    if not isinstance(options, Sequence) or isinstance(options, str):
        return None
    matching = [letter for letter, option in zip("ABCD", options, strict=False) if str(option).casefold() == claim]
    return matching[0] if len(matching) == 1 else None
