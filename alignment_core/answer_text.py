r"""One way to write an answer, before it is read: delimiters, spacing, fonts, Unicode signs and phrases put away.

For the thorough verdict only; structure (braces, brackets, commands with a meaning) is kept, so that `x^{21}` and
`x^{2}1` stay apart. Every rule is one linear pass.
"""

import re

_SIGNS = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\uff0d": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ", "\u00f7": r"\div ", "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u2264": r"\le ",
    "\u2265": r"\ge ", "\u2260": r"\ne ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2205": r"\emptyset ",
    "\u00b0": r"^\circ ", "\u00b1": r"\pm ", "\u2208": r"\in ", "\u00b2": "^2", "\u00b3": "^3",
    "\u00bd": r"\frac{1}{2}", "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}",
    "\u20ac": r"\euro ", "\u00a3": r"\pounds ",
    "\u211d": r"\mathbb{R}", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
}  # fmt: skip
_SPELLINGS = (
    (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), (r"\cfrac", r"\frac"), (r"\displaystyle", " "), (r"\textstyle", " "),
    (r"\limits", ""), (r"\bigl", ""), (r"\bigr", ""), (r"\Bigl", ""), (r"\Bigr", ""), (r"\big", ""),
    (r"\varnothing", r"\emptyset"), (r"\textdollar", r"\$"), ("USD", r"\$"), (r"\qquad", " "), (r"\quad", " "),
    (r"\,", " "), (r"\;", " "), (r"\:", " "), (r"\ ", " "), ("~", " "), ("{,}", ","), (r"\!", ""), (r"\(", " "),
    (r"\)", " "), (r"\[", " "), (r"\]", " "), ("**", "^"), ("\n", " "), ("\t", " "), (r"\degree", r"^\circ "),
    ("^{\\circ}", r"^\circ "), (r"^ \circ", r"^\circ "), (r"\geqslant", r"\ge "), (r"\leqslant", r"\le "),
    (r"\neq", r"\ne "), (r"\geq", r"\ge "), (r"\leq", r"\le "), (">=", r"\ge "), ("<=", r"\le "), ("!=", r"\ne "),
    (r"\lt", "<"), (r"\gt", ">"), (r"\lbrace", r"\{"), (r"\rbrace", r"\}"), (r"\langle", "<("), (r"\rangle", ")>"),
)  # fmt: skip
_BOLD = re.compile(r"\*\*([^*]+)\*\*")
_LEFT_RIGHT = re.compile(r"\\(?:left|right)(?![a-z])\.?")
_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|tt|sf)?|mathrm|mathbf|mathit|mathsf|mbox|operatorname|textup)\s*\{([^{}]*)\}"
)
_ROOT_SIGN = re.compile("\u221a\\s*(?:\\(([^()]*)\\)|([0-9]+|[a-z]))")
RANGE_SIGN = "\u2013"
"""What stays between the ends of a range and the parts of a date, where a minus sign would be a subtraction."""
_RANGE = re.compile(r"(?<=\d)(?:[\u2013\u2014]|\\text *\{ *- *\}|--)(?=\d)")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?|\d\d?-\d\d?-\d{4}|\d{3}-\d{4}")
_PHRASE = re.compile(
    r"(?:so |thus |hence |therefore,? )?(?:the )?(?:final |correct )?(?:answer|result|solution|value)"
    r"(?: is| equals|:|=)+",
    re.IGNORECASE,
)
_SPACES = re.compile(r" {2,}")
_GROUPED = re.compile(r"(?<![\d.,])(\d{1,3}(?: \d{3})+)(?![\d])")


def tidy(text: str) -> str:
    r"""`text` in one spelling; text commands are unwrapped, leaving their words.

    >>> tidy(r"$\dfrac{1}{2}\,\text{cm}$"), tidy(r"The answer is **12**.")
    ('\\frac{1}{2} cm', '12')
    """
    text = _BOLD.sub(r"\1", text).replace(r"\\", "\x02")  # a row's end, whatever follows
    text = _RANGE.sub("\x03", text)
    for sign, spelling in _SIGNS.items():
        text = text.replace(sign, spelling)
    text = _ROOT_SIGN.sub(lambda match: rf"\sqrt{{{match[1] or match[2]}}}", text)
    text = _LEFT_RIGHT.sub("", text)
    for spelling, canonical in _SPELLINGS:
        text = text.replace(spelling, canonical)
    text = _FONT.sub(r" \1 ", _FONT.sub(r" \1 ", text))
    text = _without_delimiters(text.replace(r"\$", "\x01")).strip()
    text = _PHRASE.sub("", text, count=1).strip() if _PHRASE.match(text) else text
    text = text.removeprefix("=").removeprefix(":").strip()
    text = text[:-1].rstrip() if text.endswith((".", ",", ";")) else text
    text = _SPACES.sub(" ", text).replace("\x01", r"\$").replace("\x02", r"\\")
    text = text.replace("-", RANGE_SIGN) if _DATE.fullmatch(text) else text.replace("\x03", RANGE_SIGN)
    return _GROUPED.sub(lambda match: match[1].replace(" ", ""), _unboxed(text))


def _without_delimiters(text: str) -> str:
    """Without the dollar signs around mathematics; a lone one before a number is money."""
    if text.count("$") % 2 == 0:
        return text.replace("$", " ")
    return text.replace("$", "\x01", 1).replace("$", " ")


def _unboxed(text: str) -> str:
    inner = re.fullmatch(r"\\boxed\s*\{(.*)\}", text)
    return inner[1].strip() if inner else text


def skeleton(text: str) -> str:
    """Tidy text without case and without spaces, but for those between digits; every dash is one."""
    return re.sub(r" (?!\d)|(?<!\d) ", "", text).casefold().replace(RANGE_SIGN, "-")
