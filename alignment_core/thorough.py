"""The thorough verdict: our own reading of both answers first, then the fast tests and math-verify.

Where both answers can be read (`form_reading`), their forms decide, for and against: this finds equal answers that
the fast tests miss, and refuses what they and math-verify let pass (`5 m` for `5 cm`, `x + y = 3` for `3`). Where they
cannot, the fast verdict stands or math-verify's does, read as LaTeX. Everything here runs in grading children only:
math-verify and sympy know no bounds.
"""

from collections.abc import Callable
from functools import lru_cache

from alignment_core.answer_forms import Form
from alignment_core.answer_text import skeleton, tidy
from alignment_core.form_equality import equal_forms
from alignment_core.form_reading import read_form
from alignment_core.grading import MAX_SYMBOLIC, compare
from alignment_core.numeric import Unreadable
from alignment_core.verdicts import Question, Verdict


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
