"""The symbolic test: do two plain-text answers denote the same number, expression or bracketed list?

Expressions are read by a recursive descent parser into small tuples, which `numeric` compares by value. Nothing is
ever evaluated as code, and length, nesting, exponents and digits are bounded before any arithmetic: a verdict
costs milliseconds whatever the text.
"""

import re
from fractions import Fraction
from itertools import pairwise

from alignment_core.descent import Descent
from alignment_core.latex_plain import integer_value, plain_text
from alignment_core.numeric import Node, Unreadable, equal_everywhere
from alignment_core.seeding import derive_seed

MAX_EXPRESSION = 300
"""Characters of one expression."""
MAX_UNKNOWNS = 2

_FRACTION = re.compile(r"-?[0-9]+\.?/[0-9]+\.?", re.ASCII)
"""A plain fraction, also one with a full stop behind it: the published count on real answers tells that it is one."""
_LIST = re.compile(r"[()\[\]]([^()\[\]]+)[()\[\]]")
_SUSPICIOUS_POWER = re.compile(r"\^[({]|\^[0-9]+\^|\^[0-9][0-9]+")
_LEXEME = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]{1,3}(?![0-9]))?|\*\*|[^\W\d_]+|[-+*/^!()]")


def symbolically_equal(answer: str, gold: str) -> bool:
    """Whether the two LaTeX or plain-text answers agree by value (see the module for what is read)."""
    try:
        given, wanted = plain_text(answer), plain_text(gold)
        if not given:
            return False
        return given == wanted or _lists_equal(given, wanted)
    except Unreadable:
        return False


def _lists_equal(given: str, wanted: str) -> bool:
    """Compare two bracketed lists element by element, anything else as one expression."""
    given_parts, wanted_parts = _elements(given), _elements(wanted)
    if len(given_parts) != len(wanted_parts):
        return False
    if len(wanted_parts) > 1 and (given[0], given[-1]) != (wanted[0], wanted[-1]):
        return False
    return all(map(_elements_equal, given_parts, wanted_parts))


def _elements(text: str) -> list[str]:
    inner = _LIST.fullmatch(text)
    return inner[1].split(",") if inner else [text]


def _elements_equal(given: str, wanted: str) -> bool:
    """Unreduced fractions and integers against non-integers are wrong; the rest is compared by value."""
    if _FRACTION.fullmatch(given) and _FRACTION.fullmatch(wanted):
        return given == wanted
    given_integer, wanted_integer = integer_value(given), integer_value(wanted)
    if given_integer is not None or wanted_integer is not None:
        return given_integer == wanted_integer
    return _worth_computing(f"({wanted})-({given})") and same_value(given, wanted)


def _worth_computing(difference: str) -> bool:
    """At most two distinct letters (function names count), and no power that could grow."""
    letters = {char for char in difference.replace("sqrt", "").replace("frac", "") if char.isalpha()}
    return len(letters) <= MAX_UNKNOWNS and not _SUSPICIOUS_POWER.search(difference)


def same_value(left: str, right: str) -> bool:
    """Whether two arithmetic expressions are equal at every sampled point; raises `Unreadable`.

    >>> same_value("(x+1)^2", "x^2+2x+1"), same_value("sqrt(x^2)", "x")
    (True, False)
    """
    return equal_everywhere(parse(left), parse(right), derive_seed("symbolic", left, right))


# grammar: sum = product (+|- product)*; product = signed ([*|/] signed)*; signed = -signed | power;
#          power = postfix (^ signed)?; postfix = primary !*; primary = number | letter | name(sum) | (sum)


def parse(text: str) -> Node:
    """`text` as nested tuples: ("number", Fraction), ("unknown", letter), ("+", a, b), ("sqrt", a) and so on.

    Raises `Unreadable`.
    """
    if len(text) > MAX_EXPRESSION:
        raise Unreadable("expression too long")
    return _Parser(_lexemes(text)).whole()


def _lexemes(text: str) -> list[str]:
    """Numbers, operators, known names; any other run of letters is a product of its letters (`xsqrt(2)` too)."""
    found = _LEXEME.findall(text)
    if sum(map(len, found)) != len(text):
        raise Unreadable("not an arithmetic expression")
    lexemes: list[str] = []
    for lexeme, after in pairwise([*found, ""]):
        known = not lexeme.isalpha() or lexeme == "pi" or (lexeme in {"sqrt", "ln"} and after == "(")
        lexemes.extend([lexeme] if known else lexeme)
    return lexemes


class _Parser(Descent):
    """The grammar above."""

    def product(self, depth: int) -> Node:
        """Factors joined by *, / or nothing, all of one precedence: `1/2x` is x/2."""
        node = self.signed(depth)
        while self.peek() not in {"", "+", "-", ")", "!", "^", "**"}:
            operator = self.take() if self.peek() in {"*", "/"} else "*"
            node = (operator, node, self.signed(depth))
        return node

    def power(self, depth: int) -> Node:
        """A base with factorial signs and an exponent, which binds to the right."""
        node = self.primary(depth)
        while self.peek() == "!":
            self.take()
            node = ("!", node)
        if self.peek() in {"^", "**"}:
            self.take()
            node = ("^", node, self.signed(depth + 1))
        return node

    def primary(self, depth: int) -> Node:
        """A number, a letter, pi, sqrt(...), ln(...) or a parenthesis."""
        lexeme = self.take()
        if lexeme in {"(", "sqrt", "ln"}:
            if lexeme != "(":
                self.take()
            inner = self.sum(depth + 1)
            self.expect(")")
            return inner if lexeme == "(" else (lexeme, inner)
        if lexeme[:1] in set("0123456789."):
            return ("number", Fraction(lexeme))
        if lexeme == "pi":
            return ("pi",)
        if lexeme.isalpha():
            return ("unknown", lexeme)
        raise Unreadable("a number is missing")
