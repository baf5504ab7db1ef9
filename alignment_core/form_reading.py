r"""From the text of an answer to its form: a number with its unit, a list, an interval, a matrix, an equation, words.

For the thorough verdict. `read_form` looks at the outermost structure first and at expressions last. What it does
not surely understand raises `Unreadable`, and others decide.
"""

import re
from fractions import Fraction
from itertools import islice

from alignment_core.answer_forms import (
    Bracketed,
    Clock,
    Equation,
    Expression,
    Form,
    Joined,
    Listing,
    Matrix,
    Numeral,
    Ratio,
    Relation,
    Words,
)
from alignment_core.answer_text import tidy
from alignment_core.latex_expression import read_expression
from alignment_core.latex_plain import MAX_NESTING
from alignment_core.numeric import Node, Unreadable
from alignment_core.units import read_unit

MOST_TAILS = 8
"""Places at which a unit may begin that are tried."""
_CONNECTIVE = re.compile(r"(?:,? (?:and|or) )|[,;]")
_OR = re.compile(r",? or ")
_AND = re.compile(r",? and |,(?= )")
_RELATION_SIGN = re.compile(r"\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|[<>]")
_SIGN_NAMES = {"\\le": "<=", "\\ge": ">=", "\\ne": "!="}
_ENVIRONMENT = re.compile(
    r"(?P<factor>[^&]*?)\\begin ?\{(?:[pb]?matrix|smallmatrix|array)\} ?(?:\{[clr| ]*\})?"
    r"(?P<body>.*?)\\end ?\{[a-z]+\}",
    re.DOTALL,
)
_LABEL = re.compile(
    r"\\?[A-Za-z]{1,6}(?:_\{?\w{1,3}\}?)?(?:\^\{-1\})?(?: ?\([a-z](?:, ?[a-z])*\))?'{0,2}|\([a-z](?:, ?[a-z]){1,3}\)"
)
_NUMERAL = re.compile(r"([0-9A-Za-z ]+?) ?_ ?(?:\{ ?(\d{1,2}) ?\}|(\d{1,2}))")
_CLOCK = re.compile(r"(\d{1,2}):(\d\d) ?(?:([ap])\.? ?m\.?)?", re.IGNORECASE)
_COMPOUND = re.compile(r"(\d+) ?([A-Za-z]+),? (?:and )?(\d+(?:\.\d+)?) ?([A-Za-z]+)")
_LENGTH = re.compile(r"(?:(\d+)' ?)?(\d+(?:\.\d+)?)''")
_CHOICE = re.compile(r"\(? ?([A-Z]) ?\)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z'’.-]*(?: [A-Za-z'’.-]+)*")
_PRIMED = re.compile(r"[A-Za-z]{1,2}['’]+")
_ARTICLES = re.compile(r"(?<![a-z])(?:the|an?) ")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|textbf)")
_UNIT_TAIL = re.compile(r"(?<=[\d)}. ])(?:[A-Za-z(%\u00a2]|\\[%$]|\^ ?\\circ)")
_MAGNITUDES = {
    "thousand": 10**3,
    "k": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "hundred": 100,
}
_MONEY = re.compile(r"(-? ?)(\\\$|\\euro|\\pounds|Rs\.?) ?(?=[\d.(])")
_NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        ]
    )
} | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100}
ONE: Node = ("number", Fraction(1))


def read_form(text: str) -> Form:
    """The form of an answer as it was written; raises `Unreadable`."""
    return _form(tidy(text), 0, bool(_TEXT_COMMAND.search(text)))


def _form(text: str, depth: int, worded: bool = False) -> Form:
    """The form of a tidy text, by the outermost structure that fits."""
    text = text.strip()
    if depth > MAX_NESTING or not text:
        raise Unreadable("nothing there, or nested too deep")
    for read in (_simple, _joined, _related, _equation, _matrix, _listed, _bracketed):
        form = read(text, depth + 1)
        if form is not None:
            return form
    return _words(text, worded) or _amount(text)


def _simple(text: str, depth: int) -> Form | None:
    """Clock times, numerals with a base, option letters, the empty set and all reals."""
    clock = _CLOCK.fullmatch(text)
    if clock and int(clock[1]) < 25 and int(clock[2]) < 60:
        return Clock(int(clock[1]), int(clock[2]), (clock[3] or "").lower() and clock[3].lower() + "m")
    numeral = _NUMERAL.fullmatch(text)
    if numeral and numeral[1][0].isdigit() | (numeral[1][0].isupper() and len(numeral[1]) > 1):
        return _numeral(numeral)
    choice = _CHOICE.fullmatch(text)
    if choice:
        return Expression(("unknown", choice[1]))
    length = _LENGTH.fullmatch(text)
    if length:
        inches = 12 * Fraction(length[1] or 0) + Fraction(length[2])
        return Expression(("number", inches), read_unit("inch"))
    compound = _COMPOUND.fullmatch(text)
    if compound:
        return _compound(*compound.groups())
    if re.sub(" ", "", text) in {"\\emptyset", "\\{\\}"}:
        return Listing((), "set")
    if re.sub(" ", "", text) in {"\\mathbb{R}", "\\R", "\\Reals"}:
        return Bracketed("(", (Expression(("-inf",)), Expression(("inf",))), ")")
    return None


def _compound(first: str, unit: str, second: str, smaller: str) -> Expression | None:
    """`5 ft 10 in`, `1 hour and 15 minutes` as one amount in the smaller unit."""
    large, small = read_unit(unit), read_unit(smaller)
    if large.powers != small.powers or large.factor <= small.factor:
        return None
    return Expression(("number", Fraction(first) * large.factor / small.factor + Fraction(second)), small)


def _numeral(match: re.Match[str]) -> Numeral:
    base = int(match[2] or match[3])
    try:
        return Numeral(int(match[1].replace(" ", ""), base))
    except ValueError as error:
        raise Unreadable("digits outside the base") from error


def _joined(text: str, depth: int) -> Form | None:
    r"""Unions, and inequalities joined by "or"."""
    parts = _split(text, re.compile(r"\\cup(?![a-z])"))
    if len(parts) > 1:
        return Joined(tuple(_form(part, depth) for part in parts))
    for separator, every in ((_OR, False), (_AND, True)):
        parts = _split(text, separator)
        if len(parts) > 1 and all(_RELATION_SIGN.search(part) for part in parts):
            return Joined(tuple(_form(part, depth) for part in parts), every)
    return None


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Pieces between separators outside all brackets."""
    pieces, depth, last = [], 0, 0
    for match in re.finditer(r"(?P<open>[(\[{])|(?P<close>[)\]}])|" + separator.pattern, text):
        if match["open"]:
            depth += 1
        elif match["close"]:
            depth -= 1
        elif depth == 0:
            pieces.append(text[last : match.start()])
            last = match.end()
    return [*pieces, text[last:]]


def _related(text: str, depth: int) -> Form | None:
    r"""Inequalities, `x \in S` (as S) and `x \ne 2`."""
    members = _split(text, re.compile(r"\\in(?![a-z])"))
    if len(members) == 2 and _LABEL.fullmatch(members[0].strip()):
        return _form(members[1], depth)
    signs = _RELATION_SIGN.findall(text)
    if not signs or "=" in text or text.startswith("<(") or len(_split(text, _CONNECTIVE)) > 1:
        return None
    sides = _RELATION_SIGN.split(text)
    if len(signs) > 3:
        raise Unreadable("a long chain")
    return Relation(tuple(map(_side, sides)), tuple(_SIGN_NAMES.get(sign, sign) for sign in signs))


def _side(text: str) -> Node:
    """An expression or an infinity."""
    plain = text.replace(" ", "").replace("+", "")
    if plain in {"\\infty", "infty", "inf", "-\\infty", "-infty", "-inf", "infinity", "-infinity", "oo", "-oo"}:
        return ("-inf",) if plain.startswith("-") else ("inf",)
    return read_expression(text)


def _equation(text: str, depth: int) -> Form | None:
    parts = text.split("=")
    if len(parts) == 1 or len(_split(text, _CONNECTIVE)) > 1:
        return None
    if len(parts) > 4:
        raise Unreadable("a long chain")
    left, right = "=".join(parts[:-1]).strip(), parts[-1]
    label = left if _LABEL.fullmatch(left) else ""
    if label.startswith("("):
        return Equation(Words(label), _form(right, depth), label)
    head = Words(label) if label and not _readable(left) else _form(left, depth)
    return Equation(head, _form(right, depth), label.replace(" ", ""))


def _readable(text: str) -> bool:
    try:
        read_expression(text)
    except Unreadable:
        return False
    return True


def _matrix(text: str, depth: int) -> Form | None:
    match = re.fullmatch(r"[(\[]? ?" + _ENVIRONMENT.pattern + r" ?[)\]]?", text, re.DOTALL)
    if match is None:
        return None
    rows = [row for row in re.split(r"\\\\|\\cr", match["body"].replace("\\hline", "")) if row.strip()]
    cells = tuple(tuple(_form(cell, depth) for cell in row.split("&")) for row in rows)
    factor = match["factor"].strip(" ([").removesuffix("\\cdot")
    return Matrix(cells, read_expression(factor) if factor else ONE)


def _listed(text: str, depth: int) -> Form | None:
    r"""Answers side by side, and `\pm` as two."""
    flat = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    parts = _split(flat, _CONNECTIVE)
    if len(parts) > 1:
        if any(not part.strip() for part in parts):
            parts = [part for part in parts if part.strip()]
        words = set(re.findall(r"\b(?:and|or)\b", flat))
        return Listing(_flat(parts, depth), "list", words.pop() if len(words) == 1 else "")
    if text.count("\\pm") == 1:
        head, _, tail = text.partition("\\pm")
        return Listing((_amount(f"{head}+{tail}"), _amount(f"{head}-{tail}")), "list")
    terms = _split(text, re.compile(":| to "))
    if 1 < len(terms) < 6:
        return Ratio(tuple(map(read_expression, terms)))
    return None


def _bracketed(text: str, depth: int) -> Form | None:
    if text.startswith("\\{") and text.endswith("\\}"):
        return _set(text[2:-2], depth)
    if text[0] == "{" and text[-1] == "}" and len(_split(text[1:-1], _CONNECTIVE)) > 1:
        return _set(text[1:-1], depth)
    match = re.fullmatch(r"(<\(|[(\[\]])(.*)(\)>|[)\]\[])", text)
    if match is None:
        return None
    items = _split(match[2], re.compile("[,;]"))
    if len(items) < 2 or any(not item.strip() for item in items):
        return None
    opening, closing = ("(", ")") if match[1] == "<(" else (match[1], match[3])
    if opening == "]" or closing == "[":  # the French way: ]0, 1[ is open
        opening, closing = {"]": "("}.get(opening, opening), {"[": ")"}.get(closing, closing)
    return Bracketed(opening, tuple(_item(item, depth) for item in items), closing)


def _item(text: str, depth: int) -> Form:
    side = re.sub(r"[ +]", "", text)
    return Expression(_side(text)) if side.lstrip("-") in {"\\infty", "infty", "inf", "oo"} else _form(text, depth)


def _set(text: str, depth: int) -> Listing:
    if re.search(r"\\mid|:|\|", text):
        raise Unreadable("a set by its property")
    return Listing(_flat(_split(text, re.compile("[,;]")), depth), "set")


def _flat(parts: list[str], depth: int) -> tuple[Form, ...]:
    r"""The forms of the parts; one that is two answers (`\pm 3`) counts as two."""
    items: list[Form] = []
    for part in parts:
        form = _form(part, depth)
        items.extend(form.items if isinstance(form, Listing) and form.kind == "list" else [form])
    return tuple(items)


def _words(text: str, worded: bool) -> Words | Expression | None:
    """Plain words; number words are numbers. A short run of letters that no text command marks is a product."""
    if not _WORDS.fullmatch(text) or _is_difference(text, worded) or _PRIMED.fullmatch(text):
        return None
    plain = text.casefold()
    tens, _, ones = plain.partition("-")
    if plain in _NUMBER_WORDS:
        return Expression(("number", Fraction(_NUMBER_WORDS[plain])))
    if _NUMBER_WORDS.get(tens, 0) >= 20 and 0 < _NUMBER_WORDS.get(ones, 0) < 10:
        return Expression(("number", Fraction(_NUMBER_WORDS[tens] + _NUMBER_WORDS[ones])))
    if len(text) == 1 or (len(text) <= 2 and text.islower() and not worded) or text in {"pi"}:
        return None
    return Words(re.sub(r"[.’']", "", _ARTICLES.sub("", plain)).strip())


def _is_difference(text: str, worded: bool) -> bool:
    """Whether letters stand around a minus sign (`x-y`, `an - a`), where words would have a hyphen (`x-axis`)."""
    terms = text.split("-")
    return len(terms) > 1 and max(len(term.strip()) for term in terms) <= (1 if worded else 2)


def _amount(text: str) -> Expression:
    """An expression with money before it or a unit behind it."""
    money = _MONEY.match(text)
    if money:
        inner = _amount(money[1].strip() + text[money.end() :].replace("\\$", ""))
        symbol = {"\\$": "dollar", "\\euro": "euro", "\\pounds": "\\pounds"}.get(money[2], "rupee")
        return inner._replace(unit=read_unit(symbol))
    for match in islice(_UNIT_TAIL.finditer(text), MOST_TAILS):
        amount = _with_unit(
            text[: match.start()].rstrip(), text[match.start() :].strip(), text[match.start() - 1] == " "
        )
        if amount is not None:
            return amount
    return Expression(read_expression(text))


def _with_unit(number: str, unit: str, spaced: bool) -> Expression | None:
    """The amount, unless the number is none or the tail no unit."""
    unit = re.sub(r"^\^ ?\\circ", "degree", unit).replace("\\%", "%")
    if unit.startswith("(") and not re.fullmatch(r"\([A-Za-z ]+\)", unit):
        return None
    letters = re.sub("[^A-Za-z]", "", unit)
    if len(letters) == 1 and not (spaced and letters in "mgslhdL" and re.fullmatch(r"[-\d.,/]+", number)):
        return None
    if unit.startswith("degree") and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)|(?:sin|cos|tan)\b", number):
        return None
    if re.match(r"(?:sqrt|pi|sin|cos|tan|ln|log|e|i|x|y|z)(?![A-Za-z])", unit):
        return None
    try:
        tree = read_expression(number)
        first, _, rest = unit.partition(" ")
        if first.casefold() in _MAGNITUDES:
            scaled = ("*", tree, ("number", Fraction(_MAGNITUDES[first.casefold()])))
            return Expression(scaled, read_unit(rest) if rest else None)
        measure = read_unit(unit)
        if not spaced and all(len(base) < 4 for base, _ in measure.powers):  # 2xy: units we know have longer bases
            return None
        return Expression(tree, measure)
    except Unreadable:
        return None
