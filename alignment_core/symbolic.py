"""The symbolic test: do two plain-text answers denote the same number, expression or bracketed list?

Expressions are read by a recursive descent parser into small tuples and compared by value: exact rational
arithmetic where possible, 50-digit complex arithmetic for roots, pi and logarithms. Unknown letters take
several rational values of both signs, drawn from the texts themselves, so that an identity holds at all of
them and a near miss at none. Nothing is ever evaluated as code, and length, nesting, exponents and digits are
bounded before any arithmetic: a verdict costs milliseconds whatever the text.
"""

import math
import random
import re
from fractions import Fraction
from itertools import pairwise
from typing import Any

from alignment_core.latex_plain import MAX_NESTING, Unreadable, integer_value, plain_text
from alignment_core.seeding import derive_seed

MAX_EXPRESSION = 300
"""Characters of one expression."""
MAX_BITS = 2048
"""Size of any exact intermediate value."""
MAX_UNKNOWNS = 2
DIGITS = 50
CERTAIN_DIGITS = 35
"""How many of the computed digits must agree; the rest is room for rounding and cancellation."""

Node = tuple[Any, ...]
Value = Any
"""Fraction while exact, an mpmath number afterwards."""

_FRACTION = re.compile(r"-?[0-9]+/[0-9]+", re.ASCII)
_LIST = re.compile(r"[(\[]([^()\[\]]+)[)\]]")
_SUSPICIOUS_POWER = re.compile(r"\^[({]|\^[0-9]+\^|\^[0-9][0-9]+")
_LEXEME = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]{1,3}(?![0-9]))?|\*\*|[^\W\d_]+|[-+*/^!()]")
_SIGNS = ((1, 1), (-1, 1), (1, -1), (-1, -1))


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
    trees = parse(left), parse(right)
    letters = sorted({name for tree in trees for name in _unknowns(tree)})
    draw = random.Random(derive_seed("symbolic", left, right))
    for signs in _SIGNS if letters else _SIGNS[:1]:
        point = {
            name: Fraction(signs[index % 2] * draw.randint(1, 997), draw.randint(101, 499))
            for index, name in enumerate(letters)
        }
        if not _close(evaluate(trees[0], point), evaluate(trees[1], point)):
            return False
    return True


def _unknowns(node: Node) -> set[str]:
    if node[0] == "unknown":
        return {node[1]}
    return set().union(*(_unknowns(part) for part in node[1:] if isinstance(part, tuple)))


def _close(left: Value, right: Value) -> bool:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    left, right = _inexact(left), _inexact(right)
    return bool(abs(left - right) <= max(abs(left), abs(right)) * _context().mpf(10) ** -CERTAIN_DIGITS)


# grammar: sum = product (+|- product)*; product = signed ([*|/] signed)*; signed = -signed | power;
#          power = postfix (^ signed)?; postfix = primary !*; primary = number | letter | name(sum) | (sum)


def parse(text: str) -> Node:
    """`text` as nested tuples: ("number", Fraction), ("unknown", letter), ("+", a, b), ("sqrt", a) and so on.

    Raises `Unreadable`.
    """
    if len(text) > MAX_EXPRESSION:
        raise Unreadable("expression too long")
    lexemes = _lexemes(text)
    parser = _Parser(lexemes)
    tree = parser.sum(0)
    if parser.position < len(lexemes):
        raise Unreadable("unbalanced parenthesis")
    return tree


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


class _Parser:
    """Recursive descent; `depth` counts nested parentheses, signs and powers."""

    def __init__(self, lexemes: list[str]) -> None:
        self.lexemes = lexemes
        self.position = 0

    def peek(self) -> str:
        """The next lexeme, or the empty string at the end."""
        return self.lexemes[self.position] if self.position < len(self.lexemes) else ""

    def take(self) -> str:
        """Consume and return the next lexeme."""
        lexeme = self.peek()
        self.position += 1
        return lexeme

    def sum(self, depth: int) -> Node:
        """Terms joined by + and -."""
        node = self.product(depth)
        while self.peek() in {"+", "-"}:
            node = (self.take(), node, self.product(depth))
        return node

    def product(self, depth: int) -> Node:
        """Factors joined by *, / or nothing, all of one precedence: `1/2x` is x/2."""
        node = self.signed(depth)
        while self.peek() not in {"", "+", "-", ")", "!", "^", "**"}:
            operator = self.take() if self.peek() in {"*", "/"} else "*"
            node = (operator, node, self.signed(depth))
        return node

    def signed(self, depth: int) -> Node:
        """A power with leading signs."""
        if depth > MAX_NESTING:
            raise Unreadable("nested too deep")
        if self.peek() == "-":
            self.take()
            return ("-", ("number", Fraction(0)), self.signed(depth + 1))
        if self.peek() == "+":
            self.take()
            return self.signed(depth + 1)
        return self.power(depth)

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
            if self.take() != ")":
                raise Unreadable("unbalanced parenthesis")
            return inner if lexeme == "(" else (lexeme, inner)
        if lexeme[:1] in set("0123456789."):
            return ("number", Fraction(lexeme))
        if lexeme == "pi":
            return ("pi",)
        if lexeme.isalpha():
            return ("unknown", lexeme)
        raise Unreadable("a number is missing")


def evaluate(node: Node, point: dict[str, Fraction]) -> Value:
    """The value of a parsed expression at a point; raises `Unreadable` where undefined or too large."""
    kind = node[0]
    if kind == "number":
        return _bounded(node[1])
    if kind == "unknown":
        return point[node[1]]
    if kind == "pi":
        return +_context().pi
    operands = [evaluate(part, point) for part in node[1:]]
    if kind in {"sqrt", "ln", "!"}:
        return _FUNCTIONS[kind](operands[0])
    if kind == "^":
        return _power(*operands)
    return _bounded(_arithmetic(kind, *operands))


def _arithmetic(operator: str, left: Value, right: Value) -> Value:
    if not (isinstance(left, Fraction) and isinstance(right, Fraction)):
        left, right = _inexact(left), _inexact(right)
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if right == 0:
        raise Unreadable("division by zero")
    return left / right


def _power(base: Value, exponent: Value) -> Value:
    """base^exponent: exact for whole exponents of rationals, else principal value."""
    if base == 0:
        if not isinstance(exponent, Fraction) or exponent <= 0:
            raise Unreadable("0 to a power that is not positive")
        return base
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        if abs(exponent) * max(base.numerator.bit_length(), base.denominator.bit_length()) > 2 * MAX_BITS:
            raise Unreadable("power too large")
        return _bounded(base**exponent.numerator)
    if exponent == Fraction(1, 2):
        return _square_root(base)
    base, exponent = _inexact(base), _inexact(exponent)
    if abs(_logarithm(base)) * abs(exponent) > MAX_BITS:
        raise Unreadable("power too large")
    return _bounded(base**exponent)


def _square_root(value: Value) -> Value:
    """Exact for squares of rationals, principal value otherwise."""
    if isinstance(value, Fraction) and value >= 0:
        upper, lower = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if upper * upper == value.numerator and lower * lower == value.denominator:
            return Fraction(upper, lower)
    return _context().sqrt(_inexact(value))


def _logarithm(value: Value) -> Value:
    if value == 0:
        raise Unreadable("logarithm of 0")
    return Fraction(0) if value == 1 else _context().log(_inexact(value))


def _factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 200:
        raise Unreadable("a factorial we do not compute")
    return Fraction(math.factorial(value.numerator))


_FUNCTIONS = {"sqrt": _square_root, "ln": _logarithm, "!": _factorial}


def _bounded(value: Value) -> Value:
    """`value` unless it is too large to compute on with."""
    if isinstance(value, Fraction):
        too_large = max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS
    else:
        too_large = value != 0 and abs(_context().mag(value)) > MAX_BITS
    if too_large:
        raise Unreadable("number too large")
    return value


def _inexact(value: Value) -> Value:
    if not isinstance(value, Fraction):
        return value
    return _context().mpf(value.numerator) / value.denominator


_CONTEXTS: list[Any] = []


def _context() -> Any:
    """Our own mpmath context (importing it costs 0.1 s, so only when an answer needs it)."""
    if not _CONTEXTS:
        import mpmath  # type: ignore[import-untyped]

        context = mpmath.MPContext()
        context.dps = DIGITS
        _CONTEXTS.append(context)
    return _CONTEXTS[0]
