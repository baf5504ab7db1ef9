"""Why a response failed, and whether the model or the parser is to blame.

One label per wrong response, from its text, how it ended and the grader's verdict. Labels are stable: they are
counted in reports and compared between runs. The numbers read here only sort failures that the grader has
already decided; no verdict is changed.
"""

import re
from fractions import Fraction
from typing import Literal, NamedTuple

from alignment_core.config import RewardName
from alignment_core.records import Completion, GradedResponse, Problem

Blame = Literal["model", "parser"]


class Reason(NamedTuple):
    """What a label means; `parser` blame marks failures that another parser might have accepted."""

    blame: Blame
    sentence: str


REASONS: dict[str, Reason] = {
    "truncated": Reason("model", "The token limit cut the response off before its answer was complete."),
    "no_closing_think": Reason("model", "The reasoning was never closed with </think>."),
    "no_answer_tag": Reason("model", "The reasoning was closed, but no <answer> was opened."),
    "unclosed_answer": Reason("model", "An <answer> was opened and the response ended without </answer>."),
    "newline_between_tags": Reason(
        "parser", "A line break stands between </think> and <answer>; the gate wants a space."
    ),
    "spacing_between_tags": Reason(
        "parser", "No space, or several, between </think> and <answer>; the gate wants one."
    ),
    "text_between_tags": Reason("model", "Words stand between </think> and <answer>."),
    "tags_out_of_order": Reason("model", "All tags occur, but not as reasoning followed by one answer."),
    "no_box": Reason("model", "The response gives no \\boxed{} answer."),
    "unclosed_box": Reason("model", "A \\boxed{ was opened and never closed."),
    "no_number": Reason("model", "The response holds no number to take as its answer."),
    "empty_answer": Reason("model", "The answer is empty."),
    "unit_or_format_mismatch": Reason(
        "parser", "The answer has the right value, but not a form that the grader accepts."
    ),
    "several_answers": Reason("model", "Several answers are offered instead of one."),
    "wrong_number": Reason("model", "The answer is a number, and not the right one."),
    "not_a_number": Reason("model", "The right answer is a number; the one given is not."),
    "wrong_expression": Reason("model", "The right answer is an expression, and another was given."),
    "grader_timeout": Reason("parser", "The grader ran out of time and counted the response as wrong."),
    "grader_error": Reason("parser", "The grader failed on the response and counted it as wrong."),
}
"""Every label with its blame and a sentence, in the order a report shows them."""

_LONGEST = 400
"""Characters of an answer that are looked at: model text may hold anything, at any length."""
_LAYOUT = re.compile(r"\\left|\\right|\\[,!;: ]|\\(?=[$%])|[$°]")
_WRAPPER = re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)(?:/0*[1-9]\d*)?")
# What makes a value of a number beside it: powers, roots, products, a variable such as the x of 8x.
_COMPUTED = re.compile(r"[\^*+]|\\sqrt|\\pi|\d[a-z]\b|\b[a-z][*/]", re.IGNORECASE)
_ALTERNATIVES = re.compile(r"\bor\b|\band\b|[,;]")


def failure_reason(
    problem: Problem, completion: Completion, grade: GradedResponse, reward: RewardName = "r1_zero"
) -> str | None:
    """Label of a wrong response (a key of `REASONS`); None if the answer was right.

    `reward` says which form was asked for: tags (`r1_zero`, `countdown`), a box (`question_only`) or any number
    (`number`).
    """
    if grade.answer_reward > 0:
        return None
    if grade.status != "ok":
        return f"grader_{grade.status}"
    if grade.format_reward > 0:
        return _wrong_answer(problem, completion.text, grade)
    if reward == "question_only":
        reason = "unclosed_box" if "\\boxed" in completion.text else "no_box"
    elif reward == "number":
        reason = "no_number"
    else:
        reason = _tag_fault(completion.text)
    cut_off = completion.finish_reason == "length" and REASONS[reason].blame == "model"
    return "truncated" if cut_off else reason


def _tag_fault(text: str) -> str:
    """Which part of `… </think> <answer> … </answer>` an unformatted response misses."""
    if "</think>" not in text:
        return "no_closing_think"
    if "<answer>" not in text:
        return "no_answer_tag"
    if "</answer>" not in text:
        return "unclosed_answer"
    _, closed, between = text.rpartition("<answer>")[0].rpartition("</think>")
    if not closed:
        return "tags_out_of_order"
    if between.strip():
        return "text_between_tags"
    return "newline_between_tags" if "\n" in between else "spacing_between_tags"


def _wrong_answer(problem: Problem, text: str, grade: GradedResponse) -> str:
    """What is wrong with the answer of a formatted response."""
    if grade.extracted is None and "\\boxed" in text:
        return "unclosed_box"
    answer, truth = _plain(grade.extracted or ""), _plain(problem.ground_truth)
    if not answer:
        return "empty_answer"
    truth_is_number = _NUMBER.fullmatch(truth) is not None
    if answer == truth or (truth_is_number and _holds_value(answer, _value(truth))):
        return "unit_or_format_mismatch"
    if grade.suspicious or text.count("<answer>") > 1 or (truth_is_number and _ALTERNATIVES.search(answer)):
        return "several_answers"
    if not truth_is_number:
        return "wrong_expression"
    return "wrong_number" if _NUMBER.search(answer) else "not_a_number"


def _plain(text: str) -> str:
    """The text in lower case, without layout: no dollar signs, size commands, `\\text{}`, thousands commas."""
    bare = _WRAPPER.sub(r" \1", _LAYOUT.sub("", text[:_LONGEST]))
    bare = _THOUSANDS.sub("", _LATEX_FRACTION.sub(r"\1/\2", bare))
    return " ".join(bare.lower().split()).strip("%.")


def _holds_value(answer: str, value: Fraction) -> bool:
    """Whether the answer is that number with words around it, or an equation that ends in it (5 + 3 = 8)."""
    result = answer.rpartition("=")[2]
    given = [_value(number) for number in _NUMBER.findall(result)]
    return given == [value] and not _COMPUTED.search(result) and not _ALTERNATIVES.search(answer)


def _value(number: str) -> Fraction:
    """Value of a match of `_NUMBER`, such as -1.5 or 3/4."""
    top, _, bottom = number.partition("/")
    return Fraction(top) / int(bottom or 1)
