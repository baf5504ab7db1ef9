r"""The string test: one canonical spelling per answer, compared by exact equality.

The rules are those of the Hendrycks MATH normalisation as the published r1_zero grader extends it (unit words,
`\text{...}` tails, array environments), so that verdicts agree with numbers reported elsewhere. Each rule is
a linear pass over a short text.
"""

import re

_SPELLINGS = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("{array}", "{pmatrix}"),
    ("{bmatrix}", "{pmatrix}"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\neq", "\\ne"),
    ("\\leq", "\\le"),
    ("\\geq", "\\ge"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
    ("\\%", ""),
)

_UNITS = (
    "m|cm|mm|dm|km|inch|inches|in|ft|foot|feet|yd|yard|mile|meter|metre|east|west|north|south"
    "|sq|square|cu|cubic|cc|acre|hectare|l|lt|liter|litre|gal|gallon"
    "|g|gm|gram|kg|kilogram|lb|ton|degree|deg|c"
    "|s|sec|second|min|minute|h|hr|hour|d|day|week|month|yr|year|am|pm|t"
    "|mph|kmph|kmh|per|percent|rs|rupee|dollar"
    "|man|men|woman|women|person|people|coin|tile|apple|toy|mark|way|number|unit|prime|ratio"
)
"""Words that word problems put behind a number: lengths, areas, weights, times, money, people, a few things.

The single letters and the gaps (no pounds, no cents) are the published grader's, as far as its verdicts on real
answers show; thorough grading is more generous.
"""

_UNIT = re.compile(rf"(?<!\w)(?:{_UNITS})(?:s|es)?(?!\w)")
_ENCLOSING_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_TRAILING_TEXT = re.compile(r"\\text\{[^{}]*\}$")
_BARE_ROOT = re.compile(r"\\sqrt\s*(\w)")
_BARE_FRACTION = re.compile(r"\\frac([^\s{}\\])(?:([^\s{}\\])|(?=\{))")
_SLASH_FRACTION = re.compile(r"(-?\d+)/(-?\d+)")
_LEADING_POINT = re.compile(r"(^|[ {])\.(?=\d)")


def normal_string(text: str) -> str:
    r"""The canonical spelling of `text`; two answers with the same one are equal.

    >>> normal_string("\\dfrac12") == normal_string("1/2") == normal_string("x = .5")
    True
    """
    text = unwrap_text(text.strip())
    for spelling, canonical in _SPELLINGS:
        text = text.replace(spelling, canonical)
    text = _without_units(_shorten(text, _TRAILING_TEXT))
    text = _LEADING_POINT.sub(r"\g<1>0.", text.strip())
    text = _right_hand_side(text)
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text).replace(" ", "")
    text = _BARE_FRACTION.sub(_braced_fraction, text)
    if text == "0.5":
        return r"\frac{1}{2}"
    slash = _SLASH_FRACTION.fullmatch(text)
    return rf"\frac{{{slash[1]}}}{{{slash[2]}}}" if slash else text


def unwrap_text(text: str) -> str:
    r"""`\text{B}` -> `B` when the command encloses everything."""
    whole = _ENCLOSING_TEXT.fullmatch(text)
    return whole[1].strip() if whole else text


def _shorten(text: str, pattern: re.Pattern[str]) -> str:
    """`text` without the pattern, unless nothing would be left."""
    shorter = pattern.sub("", text).strip()
    return shorter or text


def _without_units(text: str) -> str:
    """Two passes, since a dropped word may leave the next one standing alone."""
    return _shorten(_shorten(text, _UNIT), _UNIT)


def _right_hand_side(text: str) -> str:
    """`x = 3` -> `3` when one sign divides a left side of at most two characters from the rest."""
    left, sign, right = text.partition("=")
    if sign and "=" not in right and len(left) <= 2:
        return right.strip()
    return text


def _braced_fraction(match: re.Match[str]) -> str:
    r"""`\frac12` -> `\frac{1}{2}`, `\frac1{72}` -> `\frac{1}{72}`."""
    lower = "" if match[2] is None else f"{{{match[2]}}}"
    return rf"\frac{{{match[1]}}}{lower}"
