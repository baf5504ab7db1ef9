r"""The only answer parser of the project: what a response answers, and whether that equals the gold answer.

`tagged_answer` and `boxed_answer` extract, `compare` decides (string test, then symbolic test, then, if asked,
math-verify in a child process). Model text is hostile: every verdict takes bounded time.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from alignment_core.latex_normal import normal_string
from alignment_core.records import GradeStatus
from alignment_core.symbolic import symbolically_equal

GroundTruth = str | int | float | Sequence[str]

MAX_ANSWER = 10_000
"""Characters of an answer that the string test still reads; longer ones are wrong."""
MAX_SYMBOLIC = 1_000
"""Characters of an answer that the symbolic test and math-verify still read."""


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, which test said so, and whether the grader came to an end by itself."""

    correct: bool
    method: str = "none"
    status: GradeStatus = "ok"


def tagged_answer(response: str) -> str | None:
    """The text after the last `<answer>`, every `</answer>` removed; None if the response is unformatted.

    Formatted means: it contains `</think> <answer>` (exactly one space) and `</answer>`.
    """
    if "</think> <answer>" not in response or "</answer>" not in response:
        return None
    return response.rpartition("<answer>")[2].replace("</answer>", "")


def boxed_answer(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`; None if there is none or it is not closed."""
    start = text.rfind("\\boxed")
    if start < 0 or not text.startswith("\\boxed{", start):
        return None
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start + len("\\boxed{") : start + brace.start()]
    return None


def compare(answer: str, ground_truth: GroundTruth, thorough: bool = False) -> Verdict:
    """The verdict on an extracted answer; for a list of gold answers any match counts.

    Raises ImportError in `thorough` mode where math-verify is not installed.
    """
    golds = gold_answers(ground_truth)
    answer = answer.strip()
    if not answer or len(answer) > MAX_ANSWER:
        return Verdict(False)
    spelling = normal_string(answer)
    if any(spelling == _gold_string(gold) for gold in golds):
        return Verdict(True, "string")
    if len(answer) > MAX_SYMBOLIC:
        return Verdict(False)
    if any(symbolically_equal(answer, gold) for gold in golds):
        return Verdict(True, "symbolic")
    return _ask_math_verify(answer, golds) if thorough else Verdict(False)


def gold_answers(ground_truth: GroundTruth) -> list[str]:
    r"""The gold answers as texts, unboxed where they contain `\boxed`; unreadable or empty ones are left out."""
    golds = [ground_truth] if isinstance(ground_truth, str | int | float) else list(ground_truth)
    texts = [boxed_answer(gold) if "\\boxed" in gold else gold for gold in map(str, golds)]
    return [text for text in texts if text and text.strip()]


_gold_string = lru_cache(maxsize=4096)(normal_string)


def _ask_math_verify(answer: str, golds: Sequence[str]) -> Verdict:
    """math-verify on both sides as LaTeX, one gold after the other until one matches."""
    from alignment_core.grading_pool import math_verify_equal

    if _repetitive(answer):
        return Verdict(False)
    worst: GradeStatus = "ok"
    for gold in golds:
        equal, status = math_verify_equal(answer, gold)
        if equal:
            return Verdict(True, "math_verify")
        worst = status if worst == "ok" else worst
    return Verdict(False, status=worst)


def _repetitive(answer: str) -> bool:
    """Above 128 characters: whether fewer than half of all 8-character windows are distinct."""
    windows = [answer[start : start + 8] for start in range(len(answer) - 7)]
    return len(answer) > 128 and 2 * len(set(windows)) < len(windows)


_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?:\\!)?(?=\d{3}(?!\d))")
_BRACKETED = re.compile(r"[(\[][^()\[\]]*[)\]]")
_OPTION_MARK = re.compile(r"[,;]|\b(?:or|and)\b")


def count_options(answer: str) -> int:
    """How many values an answer lists outside brackets: `3 or 4` -> 2, `(1, 2)` -> 1, `1,000` -> 1."""
    flat = _BRACKETED.sub("x", _THOUSANDS_COMMA.sub("", answer))
    return max(1, sum(bool(part.strip()) for part in _OPTION_MARK.split(flat)))
