r"""The only answer parser of the project: what a response answers, and whether that equals the gold answer.

`tagged_answer` and `boxed_answer` extract, `compare` gives the fast verdict (string test, then symbolic test);
`alignment_core.thorough` asks further, in a child process. Model text is hostile: every verdict takes bounded time.
"""

import re
from functools import lru_cache

from alignment_core.latex_normal import normal_string
from alignment_core.symbolic import symbolically_equal
from alignment_core.verdicts import GroundTruth, Verdict

MAX_ANSWER = 10_000
"""Characters of an answer that the string test still reads; longer ones are wrong."""
MAX_GOLD_BITS = 13_000
"""Size of a gold integer that Python still writes out (4,300 digits)."""
MAX_SYMBOLIC = 1_000
"""Characters of an answer that the symbolic test and math-verify still read."""


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


def compare(answer: str, ground_truth: GroundTruth) -> Verdict:
    """The fast verdict on an extracted answer; for a list of gold answers any match counts."""
    golds = gold_answers(ground_truth)
    answer = answer.strip()
    if not answer or len(answer) > MAX_ANSWER:
        return Verdict(False)
    spelling = normal_string(answer)
    if any(spelling == _gold_string(gold) for gold in golds):
        return Verdict(True, "string")
    if len(answer) > MAX_SYMBOLIC:
        return Verdict(False)
    return Verdict(True, "symbolic") if any(symbolically_equal(answer, gold) for gold in golds) else Verdict(False)


def gold_answers(ground_truth: GroundTruth) -> list[str]:
    r"""The gold answers as texts, unboxed where they contain `\boxed`; empty or endless ones are left out."""
    golds = [ground_truth] if isinstance(ground_truth, str | int | float) else list(ground_truth)
    texts = [boxed_answer(gold) if "\\boxed" in gold else gold for gold in map(_gold_text, golds)]
    return [text for text in texts if text and len(text) <= MAX_ANSWER and text.strip()]


def _gold_text(gold: str | int | float) -> str:
    """A number as Python writes it; one too long for that is read as no answer."""
    return "" if isinstance(gold, int) and gold.bit_length() > MAX_GOLD_BITS else str(gold)


_gold_string = lru_cache(maxsize=4096)(normal_string)


_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?:\\!)?(?=\d{3}(?!\d))")
_BRACKETED = re.compile(r"[(\[][^()\[\]]*[)\]]")
_OPTION_MARK = re.compile(r"[,;]|\b(?:or|and)\b")


def count_options(answer: str) -> int:
    """How many values an answer lists outside brackets: `3 or 4` -> 2, `(1, 2)` -> 1, `1,000` -> 1."""
    flat = _BRACKETED.sub("x", _THOUSANDS_COMMA.sub("", answer))
    return max(1, sum(bool(part.strip()) for part in _OPTION_MARK.split(flat)))
