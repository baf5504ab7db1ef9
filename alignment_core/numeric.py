"""Values of parsed expressions: exact rationals while possible, 50-digit complex numbers afterwards.

An expression is a tree of tuples: ("number", Fraction), ("unknown", name), ("pi",), ("+", a, b), ("sqrt", a) and so
on. Two expressions are held equal when they agree at several points: unknown letters take rational values of both
signs, drawn from the texts themselves, so that an identity holds at all of them and a near miss at none. The size
of every intermediate value is bounded before it is computed.
"""

import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any


class Unreadable(ValueError):
    """The text is outside what we read or compute: malformed, too deep or too large."""


MAX_BITS = 2048
"""Size of any exact intermediate value."""
DIGITS = 50
CERTAIN_DIGITS = 35
"""How many of the computed digits must agree; the rest is room for rounding and cancellation."""
MAX_ARGUMENT = 10**6
"""Largest argument of a trigonometric or exponential function."""

Node = tuple[Any, ...]
Value = Any
"""Fraction while exact, an mpmath number afterwards."""

_SIGNS = ((1, 1), (-1, 1), (1, -1), (-1, -1))


def equal_everywhere(left: Node, right: Node, seed: int) -> bool:
    """Whether two trees have the same value at every sampled point; raises `Unreadable`."""
    return all(close(evaluate(left, point), evaluate(right, point)) for point in sample_points((left, right), seed))


def sample_points(trees: tuple[Node, ...], seed: int) -> list[dict[str, Fraction]]:
    """Values for the unknowns of all trees: four points of all signs, or one empty point where there are none."""
    letters = sorted({name for tree in trees for name in unknowns(tree)})
    draw = random.Random(seed)
    return [
        {
            name: Fraction(signs[index % 2] * draw.randint(1, 997), draw.randint(101, 499))
            for index, name in enumerate(letters)
        }
        for signs in (_SIGNS if letters else _SIGNS[:1])
    ]


def unknowns(node: Node) -> set[str]:
    """Names of the unknowns of a tree."""
    if node[0] == "unknown":
        return {node[1]}
    return set().union(*(unknowns(part) for part in node[1:] if isinstance(part, tuple)))


def close(left: Value, right: Value) -> bool:
    """Equality: exact for rationals, to CERTAIN_DIGITS otherwise."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    left, right = _inexact(left), _inexact(right)
    size = max(abs(left), abs(right), _context().mpf(10) ** -5)
    return bool(abs(left - right) <= size * _context().mpf(10) ** -CERTAIN_DIGITS)


def evaluate(node: Node, point: dict[str, Fraction]) -> Value:
    """The value of a parsed expression at a point; raises `Unreadable` where undefined or too large."""
    kind = node[0]
    if kind == "number":
        return _bounded(node[1])
    if kind == "unknown":
        return point[node[1]]
    if kind in _CONSTANTS:
        return _CONSTANTS[kind]()
    if kind in {"inf", "-inf"}:
        raise Unreadable("infinity is no value")
    operands = [evaluate(part, point) for part in node[1:]]
    if kind in _FUNCTIONS:
        return _bounded(_FUNCTIONS[kind](*operands))
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


def _root(value: Value, index: Value) -> Value:
    """The real root where there is one (`\\sqrt[3]{-8}` is -2), exact for powers of rationals."""
    if not isinstance(index, Fraction) or index.denominator != 1 or not 2 <= index <= 100:
        raise Unreadable("a root we do not take")
    degree = index.numerator
    if isinstance(value, Fraction) and value < 0 and degree % 2 == 1:
        return -_root(-value, index)
    root = _context().root(_inexact(value), degree)
    if isinstance(value, Fraction) and value >= 0 and max(value.numerator, value.denominator) < 10**30:
        nearest = Fraction(int(_context().nint(root * value.denominator)), value.denominator)
        if nearest**degree == value:
            return nearest
    return root


def _binomial(upper: Value, lower: Value) -> Value:
    whole = isinstance(upper, Fraction) and isinstance(lower, Fraction) and upper.denominator == lower.denominator == 1
    if not whole or not 0 <= lower <= upper <= 500:
        raise Unreadable("a binomial coefficient we do not compute")
    return Fraction(math.comb(upper.numerator, lower.numerator))


def _absolute(value: Value) -> Value:
    return abs(value)


def _floor(value: Value) -> Value:
    if not isinstance(value, Fraction):
        raise Unreadable("rounding of a value that is not rational")
    return Fraction(math.floor(value))


def _ceiling(value: Value) -> Value:
    return -_floor(-value)


def _log(value: Value, base: Value) -> Value:
    """Logarithm to a base; exact where both are powers of whole numbers is left to 50 digits."""
    bottom = _logarithm(base)
    if bottom == 0:
        raise Unreadable("logarithm to base 1")
    return _inexact(_logarithm(value)) / _inexact(bottom)


def _transcendental(name: str) -> Callable[[Value], Value]:
    def function(value: Value) -> Value:
        argument = _inexact(value)
        if abs(argument) > MAX_ARGUMENT:
            raise Unreadable("argument too large")
        try:
            return getattr(_context(), name)(argument)
        except (ZeroDivisionError, ValueError) as error:
            raise Unreadable("undefined there") from error

    return function


_CONSTANTS: dict[str, Callable[[], Value]] = {
    "pi": lambda: +_context().pi,
    "e": lambda: +_context().e,
    "i": lambda: _context().mpc(0, 1),
}
_FUNCTIONS: dict[str, Callable[..., Value]] = {
    "sqrt": _square_root, "root": _root, "ln": _logarithm, "log": _log, "!": _factorial, "binom": _binomial,
    "abs": _absolute, "floor": _floor, "ceil": _ceiling, "sin": _transcendental("sin"), "cos": _transcendental("cos"),
    "tan": _transcendental("tan"), "cot": _transcendental("cot"), "sec": _transcendental("sec"),
    "csc": _transcendental("csc"), "arcsin": _transcendental("asin"), "arccos": _transcendental("acos"),
    "arctan": _transcendental("atan"), "sinh": _transcendental("sinh"), "cosh": _transcendental("cosh"),
    "tanh": _transcendental("tanh"),
}  # fmt: skip


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
