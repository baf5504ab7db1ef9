"""Sets of real numbers as sorted, merged intervals: what intervals, unions and inequalities have in common."""

from fractions import Fraction
from functools import cmp_to_key, reduce
from typing import Any, NamedTuple

from alignment_core.answer_forms import Bracketed, Expression, Form, Joined, Relation
from alignment_core.numeric import Node, Unreadable, Value, close, evaluate, unknowns


class Bound(NamedTuple):
    """An end of an interval: `infinite` is -1 or 1 at infinity (then `value` is 0), else 0."""

    infinite: int
    value: Value
    closed: bool


Parts = tuple[tuple[Bound, Bound], ...]


class Region(NamedTuple):
    """Disjoint intervals from left to right, and the letter they are said of (empty where none is named)."""

    parts: Parts
    letter: str


def same_region(given: Region, wanted: Region) -> bool:
    """Whether two regions hold the same numbers, and are not said of different letters."""
    if given.letter and wanted.letter and given.letter != wanted.letter:
        return False
    ends = [[bound for pair in region.parts for bound in pair] for region in (given, wanted)]
    return len(ends[0]) == len(ends[1]) and all(
        _compare(mine, theirs) == 0 and mine.closed == theirs.closed for mine, theirs in zip(*ends, strict=True)
    )


_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
_EVERYTHING: Parts = ((Bound(-1, Fraction(0), False), Bound(1, Fraction(0), False)),)


def region(form: Form) -> Region | None:
    """The region a form describes, or None if it is none we can compute."""
    try:
        if isinstance(form, Bracketed):
            return Region(_merged([_interval(form)]), "")
        if isinstance(form, Relation):
            return _of_relation(form)
        if isinstance(form, Joined):
            parts = [region(part) for part in form.parts]
            known = [part for part in parts if part is not None]
            letters = {part.letter for part in known}
            if len(known) < len(parts) or len(letters) > 1:
                return None
            if form.every:
                return Region(reduce(_intersection, [part.parts for part in known]), letters.pop())
            return Region(_merged([pair for part in known for pair in part.parts]), letters.pop())
    except Unreadable:
        return None
    return None


def _interval(form: Bracketed) -> tuple[Bound, Bound]:
    if len(form.items) != 2 or form.opening not in "([" or form.closing not in ")]":
        raise Unreadable("no interval")
    low, high = (
        _bound(item.tree, bracket in "[]") if isinstance(item, Expression) and item.unit is None else None
        for item, bracket in zip(form.items, (form.opening, form.closing), strict=True)
    )
    if low is None or high is None or _compare(low, high) > 0:
        raise Unreadable("no interval")
    return low, high


def _bound(tree: Node, closed: bool) -> Bound:
    if tree[0] in {"inf", "-inf"}:
        return Bound(1 if tree[0] == "inf" else -1, Fraction(0), closed)
    if unknowns(tree):
        raise Unreadable("an end that is no number")
    value = evaluate(tree, {})
    if not isinstance(value, Fraction) and getattr(value, "imag", 0) != 0:
        raise Unreadable("an end that is not real")
    return Bound(0, value, closed)


def _compare(left: Bound, right: Bound) -> int:
    """Order by place alone."""
    if left.infinite != right.infinite or left.infinite:
        return (left.infinite > right.infinite) - (left.infinite < right.infinite)
    if close(left.value, right.value):
        return 0
    return -1 if _real(left.value) < _real(right.value) else 1


def _real(value: Value) -> Any:
    return value if isinstance(value, Fraction) else Fraction(str(value.real)) if abs(value) < 10**20 else value


def _of_relation(form: Relation) -> Region:
    """A letter between bounds, or two linear sides."""
    letters = set().union(*(unknowns(side) for side in form.sides if side[0] not in {"inf", "-inf"}))
    if len(letters) != 1:
        raise Unreadable("an inequality in several letters or in none")
    letter = letters.pop()
    parts = _EVERYTHING
    for left, sign, right in zip(form.sides, form.signs, form.sides[1:], strict=False):
        parts = _intersection(parts, _half(left, sign, right, letter))
    return Region(parts, letter)


def _half(left: Node, sign: str, right: Node, letter: str) -> Parts:
    """Where `left sign right` holds; at least one side is linear in the letter, the difference as well."""
    if ("unknown", letter) not in (left, right):
        slope, root = _linear(("-", left, right), letter)
    else:
        plain = right if left == ("unknown", letter) else left
        slope, root = Fraction(1 if left == ("unknown", letter) else -1), _bound(plain, False)
    sign = sign if slope > 0 else _FLIPPED[sign]
    closed = sign in {"<=", ">="} and not root.infinite
    end = Bound(root.infinite, root.value, closed)
    if sign == "!=":
        return ((_EVERYTHING[0][0], end), (end, _EVERYTHING[0][1]))
    return ((_EVERYTHING[0][0], end),) if sign in {"<", "<="} else ((end, _EVERYTHING[0][1]),)


def _linear(tree: Node, letter: str) -> tuple[Fraction, Bound]:
    """Slope and root of an expression that is linear with rational coefficients."""
    values = [evaluate(tree, {letter: Fraction(point)}) for point in (0, 1, 2, 7)]
    if not all(isinstance(value, Fraction) for value in values):
        raise Unreadable("not rational")
    slope = values[1] - values[0]
    if slope == 0 or any(values[0] + point * slope != value for point, value in zip((2, 7), values[2:], strict=True)):
        raise Unreadable("not linear")
    return slope, Bound(0, -values[0] / slope, False)


def _intersection(mine: Parts, theirs: Parts) -> Parts:
    pairs = []
    for low, high in mine:
        for other_low, other_high in theirs:
            start = _tighter(low, other_low, 1)
            end = _tighter(high, other_high, -1)
            if _compare(start, end) < 0 or (_compare(start, end) == 0 and start.closed and end.closed):
                pairs.append((start, end))
    return tuple(pairs)


def _tighter(left: Bound, right: Bound, direction: int) -> Bound:
    order = direction * _compare(left, right)
    if order == 0:
        return left if not left.closed else right
    return left if order > 0 else right


def _starts_before(left: tuple[Bound, Bound], right: tuple[Bound, Bound]) -> int:
    return _compare(left[0], right[0]) or right[0].closed - left[0].closed


def _merged(pairs: list[tuple[Bound, Bound]]) -> Parts:
    """Overlapping or touching intervals become one."""
    merged: list[tuple[Bound, Bound]] = []
    for low, high in sorted(pairs, key=cmp_to_key(_starts_before)):
        if merged:
            gap = _compare(merged[-1][1], low)
            if gap > 0 or (gap == 0 and (merged[-1][1].closed or low.closed)):
                last_low, last_high = merged.pop()
                merged.append((last_low, _looser(last_high, high)))
                continue
        merged.append((low, high))
    return tuple(merged)


def _looser(left: Bound, right: Bound) -> Bound:
    order = _compare(left, right)
    if order == 0:
        return left if left.closed else right
    return left if order > 0 else right
