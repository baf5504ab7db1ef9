"""The thorough verdict: our own reading of both answers first, then the fast tests and math-verify.

Where both answers can be read (`form_reading`), their forms decide, for and against: this finds equal answers that
the fast tests miss, and refuses what they and math-verify let pass (`5 m` for `5 cm`, `x + y = 3` for `3`). Where they
cannot, the fast verdict stands or math-verify's does, read as LaTeX; it is not asked where it is known to drop what
tells the answers apart (primes, dots, left sides), nor about values too large to compute. Everything here runs in
grading children only: math-verify and sympy know no bounds.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from alignment_core.answer_forms import Form
from alignment_core.answer_text import RANGE_SIGN, skeleton, tidy
from alignment_core.form_equality import equal_forms
from alignment_core.form_reading import read_form
from alignment_core.grading import MAX_SYMBOLIC, compare
from alignment_core.numeric import Unreadable
from alignment_core.verdicts import Question, Verdict

_PRIME = re.compile(r"(?:(?<![A-Za-z]{2})|(?<=\)))'|'(?![A-Za-z'])")
_ELLIPSIS = re.compile(r"\\[lc]?dots[a-z]?(?![a-z])|\.\.\.|\u2026")
_CONGRUENCE = re.compile(r"\\equiv(?![a-z])|\u2261")
_COLON = re.compile(r"(?<=\d) ?: ?(?=\d)")
_PARTIAL = re.compile(r"\\partial(?![a-z])")
_TRAILING_DOTS = re.compile(r"(?<=[^, ]) (?:\\[lc]?dots|\.\.\.|\u2026)$")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![a-z])")
_ABOUT = re.compile(r"\\approx(?![a-z])|\u2248")
_PRIME_SPELLINGS = (
    ("\u2019", "'"), ("\u2032", "'"), ("\u2033", "''"),
    ("^{\\prime\\prime}", "''"), ("^{\\prime}", "'"), ("^\\prime", "'"),
)  # fmt: skip
_VALUE = re.compile(r"[A-Za-z]'* ?\(")
_LARGE = re.compile(
    r"\d{5}[)}\]]*!|![)}\]]*!|(?:\^|\*|\\times|\\cdot)[\d{(]*[)}][\d{}()]*!"  # factorials
    r"|\^\{?-?(?!10000(?!\d))\d{5}"
)
_POWER_OF_GROUP = re.compile(r"[)}\]]\^\{?(\d{1,5})")
MOST_POWERS = 10**5
"""Product of the exponents of groups, which may be groups of one another."""
_COUNTING = re.compile(r"\\(?:[dt]?binom|choose|sum|prod)(?![a-z])")
_LARGE_COUNT = re.compile(r"(?!10000(?!\d))\d{5}")


def compare_thoroughly(question: Question) -> Verdict:
    """The verdict on an extracted answer; any matching gold counts."""
    fast = compare(*question)
    answer = question.answer.strip()
    if not answer or len(answer) > MAX_SYMBOLIC:
        return fast._replace(fast=fast.correct)
    undecided = []
    for gold in question.golds:
        verdict = judge_forms(answer, gold)
        if verdict:
            return Verdict(True, "forms", fast=fast.correct)
        if verdict is None:
            stands = compare(answer, gold)
            if stands.correct:
                return stands._replace(fast=True)
            if not (is_runaway(answer) or is_runaway(gold) or differ_in_marks(answer, gold)):
                undecided.append(gold)
    # math-verify comes last: it may take the child with it, and nothing that is surely right may be lost.
    if not _repetitive(answer) and any(math_verify()(answer, gold) for gold in undecided):
        return Verdict(True, "math_verify", fast=fast.correct)
    return Verdict(False, fast=fast.correct)


def judge_forms(answer: str, gold: str) -> bool | None:
    """Our own verdict; None where one of the answers is nothing we read for sure."""
    try:
        if skeleton(tidy(answer)) == skeleton(tidy(gold)):
            return True
        return equal_forms(read_form(answer), _gold_form(gold))
    except Unreadable:
        return None


@lru_cache(maxsize=1024)
def _gold_form(gold: str) -> Form:
    return read_form(gold)


def differ_in_marks(answer: str, gold: str) -> bool:
    r"""Whether the answers differ in what math-verify drops.

    Marks are primes, dots, `\equiv`, `\approx`, the colon of a ratio, the dash of a range, `\mp` for `\pm`, and
    left sides such as `f(2)`. A left side that only one of them has is a label, and does not count.
    """
    texts = [_TRAILING_DOTS.sub("", tidy(_with_plain_primes(text))) for text in (answer, gold)]
    lefts = [text.rpartition("=")[0] for text in texts]
    if all(lefts) and any(map(_VALUE.search, lefts)) and skeleton(lefts[0]) != skeleton(lefts[1]):
        return True
    related = [bool(left) or bool(_ABOUT.search(text)) for left, text in zip(lefts, texts, strict=True)]
    if all(related) and len({len(_ABOUT.findall(text)) for text in texts}) > 1:
        return True
    signs = [Counter(_PLUS_MINUS.findall(text)) for text in texts]
    if all(signs) and signs[0] != signs[1]:
        return True
    bare = [text if all(lefts) else text.rpartition("=")[2] for text in texts]
    return _marks(bare[0]) != _marks(bare[1])


def _with_plain_primes(text: str) -> str:
    for spelling, plain in _PRIME_SPELLINGS:
        text = text.replace(spelling, plain)
    return text


def _marks(text: str) -> list[int]:
    patterns = (_PRIME, _ELLIPSIS, _CONGRUENCE, _COLON, _PARTIAL)
    return [text.count(RANGE_SIGN), *(len(pattern.findall(text)) for pattern in patterns)]


def is_runaway(text: str) -> bool:
    r"""Whether a value is too large to compute: towers, factorials of 5 digits, sums and binomials of that size.

    sympy would try; the verdict is no sooner, and the child may be lost.
    """
    dense = text.replace("**", "^").replace("\\left", "").replace("\\right", "").replace(" ", "")
    if _LARGE.search(dense) or (_COUNTING.search(text) and _LARGE_COUNT.search(text)):
        return True
    again = math.prod(map(int, _POWER_OF_GROUP.findall(dense)[:MAX_SYMBOLIC]))
    return again > MOST_POWERS or _is_tower(dense, letters="\\int" in text)


def _is_tower(text: str, letters: bool) -> bool:
    """Whether an exponent has a numeral or a group with an exponent in it; with `letters`, any exponent."""
    groups: list[bool] = []
    exponent_ended = False
    for position, sign in enumerate(text):
        raised = text[position - 1 : position] == "^"
        if sign in "{([":
            groups.append(raised)
            raised = False
        elif sign in "})]":
            raised = bool(groups) and groups.pop()
        elif sign == "^" and not text.startswith(("^\\circ", "^{\\circ"), position):
            depth = sum(groups)
            if exponent_ended or depth > 1 or (depth and (letters or not text[position - 1].isalpha())):
                return True
        elif sign.isdigit():
            raised = raised or (exponent_ended and text[position - 1].isdigit())
        exponent_ended = raised
    return False


def _repetitive(answer: str) -> bool:
    """Above 128 characters: whether fewer than half of all 8-character windows are distinct."""
    windows = [answer[start : start + 8] for start in range(len(answer) - 7)]
    return len(answer) > 128 and 2 * len(set(windows)) < len(windows)


@lru_cache(maxsize=1)
def math_verify() -> Callable[[str, str], bool]:
    """math-verify's own comparison of two LaTeX answers, as (answer, gold), its signal timers off."""
    from math_verify import LatexExtractionConfig, parse, verify

    def equal(answer: str, gold: str) -> bool:
        sides = [
            parse(
                f"${text}$",
                extraction_config=(LatexExtractionConfig(),),
                extraction_mode="first_match",
                parsing_timeout=None,
            )
            for text in (gold, answer)
        ]
        return bool(verify(sides[0], sides[1], timeout_seconds=None))

    return equal
