r"""What a response says under each reward: formatted or not, the extracted answer, and whether it plays the gate.

What the strict tag gate accepts is the published rule, kept for comparability: `</think> <answer>` and `</answer>`
anywhere, whatever surrounds them; the text after the last `<answer>` counts, every `</answer>` in it dropped, and
of that text only its last box, if it has one. So the following are formatted, and their last answer is compared:
several answer blocks, an answer tag inside the thinking, text after the answer (which is glued to it), hedges before
a box. The fast verdict also rewards a hedge in a trailing `\text{...}` and a unit that contradicts the gold's. An empty
answer or box, `3 or 4` for 3, an unclosed box, and the question's numbers listed are wrong.

A response is `suspicious` (a flag for a person, counted in metrics, no part of the reward) when it may play the gate:
several answer blocks or thinking ends, an answer tag inside the thinking, text after the answer, several different
boxes, or more values listed than the gold has ("3 or 4", also inside a text that the verdict drops).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from alignment_core import countdown
from alignment_core.answer_parsers import parse_gsm8k_response, rational
from alignment_core.grading import MAX_ANSWER, boxed_answer, count_options, gold_answers, tagged_answer
from alignment_core.verdicts import GroundTruth, Question, Verdict


@dataclass(frozen=True)
class Reading:
    """A response as read; `verdict` is None where the answer is still to be compared with the golds."""

    formatted: bool
    answer: str | None = None
    golds: tuple[str, ...] = ()
    suspicious: bool = False
    verdict: Verdict | None = None

    @property
    def question(self) -> Question:
        """What is to be compared."""
        return Question((self.answer or "").strip(), self.golds)


WRONG = Verdict(False)
UNFORMATTED = Reading(False, verdict=WRONG)


def read_tagged(response: str, ground_truth: GroundTruth) -> Reading:
    """`r1_zero`: the answer between the tags, or the last box in it; unformatted without the exact tags."""
    answer = tagged_answer(response)
    if answer is None:
        return UNFORMATTED
    suspicious = _plays_with_tags(response)
    if "\\boxed" in answer:
        suspicious = suspicious or _boxes_differ(answer)
        answer = boxed_answer(answer)
    return _to_compare(answer, ground_truth, suspicious)


def read_boxed(response: str, ground_truth: GroundTruth) -> Reading:
    """`question_only`: the last box; unformatted without one."""
    answer = boxed_answer(response)
    if answer is None:
        return UNFORMATTED
    return _to_compare(answer, ground_truth, _boxes_differ(response))


def read_number(response: str, ground_truth: GroundTruth) -> Reading:
    """`number`: the last number, compared exactly; unformatted without one."""
    answer = parse_gsm8k_response(response)
    if answer is None:
        return UNFORMATTED
    value = rational(answer)
    correct = value is not None and value in map(rational, gold_answers(ground_truth))
    return Reading(True, answer, verdict=Verdict(correct, "number" if correct else "none"))


def read_countdown(response: str, ground_truth: GroundTruth) -> Reading:
    """`countdown`: an expression between the tags, worth what the gold is, over the gold's numbers."""
    answer = tagged_answer(response)
    if answer is None:
        return UNFORMATTED
    correct = any(countdown.solves(answer.strip(), gold) for gold in gold_answers(ground_truth))
    verdict = Verdict(correct, "countdown" if correct else "none")
    return Reading(True, answer, suspicious=_plays_with_tags(response), verdict=verdict)


Reader = Callable[[str, GroundTruth], Reading]
READERS: Mapping[str, Reader] = {
    "r1_zero": read_tagged,
    "question_only": read_boxed,
    "number": read_number,
    "countdown": read_countdown,
}


def _to_compare(answer: str | None, ground_truth: GroundTruth, suspicious: bool) -> Reading:
    """The reading of a formatted response; `answer` is None where its box is not closed."""
    if answer is None:
        return Reading(True, suspicious=suspicious, verdict=WRONG)
    golds = gold_answers(ground_truth)
    verdict = WRONG if len(answer.strip()) > MAX_ANSWER else None  # nobody needs to compare it, or to send it
    return Reading(True, answer, tuple(golds), suspicious or _lists_more(answer, golds), verdict)


_PLAIN_BOX = re.compile(r"\\boxed\{([^{}]*)\}")


def _boxes_differ(text: str) -> bool:
    return len({box.strip() for box in _PLAIN_BOX.findall(text)}) > 1


def _plays_with_tags(response: str) -> bool:
    """Several blocks or thinking ends, an answer tag inside the thinking, or text after the answer."""
    thinking = response.partition("</think>")[0]
    after = response.rpartition("</answer>")[2]
    repeated = any(response.count(tag) > 1 for tag in ("<answer>", "</answer>", "</think>"))
    return repeated or "<answer>" in thinking or bool(after.strip())


def _lists_more(answer: str, golds: Sequence[str]) -> bool:
    return count_options(answer) > max(map(count_options, golds), default=1)
