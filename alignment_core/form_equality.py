r"""Whether two forms of answers are equal: True, False, or None where it is not sure.

Conventions (those of the labelled pairs in the tests): values count, not spellings; a unit, a percent sign or a label
(`x =`) may be left out on one side, but two different ones differ; lists and sets have no order, tuples and
intervals have one; `(0,1)` as an interval is `0<x<1`.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

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
    is_name,
)
from alignment_core.latex_expression import DEGREE
from alignment_core.numeric import Node, Unreadable, close, equal_everywhere, evaluate, sample_points, unknowns
from alignment_core.regions import Region, region, same_region
from alignment_core.seeding import derive_seed

HUNDREDTH: Node = ("number", Fraction(1, 100))
MOST_UNKNOWNS = 8
_TRUTH = {"true", "false", "yes", "no"}


def equal_forms(given: Form, wanted: Form) -> bool | None:
    """Whether two answers are equal; None where nobody can tell from the forms alone."""
    given, wanted = _simplest(given, wanted), _simplest(wanted, given)
    if isinstance(given, Expression) and isinstance(wanted, Expression):
        return _equal_amounts(given, wanted)
    if type(given) is type(wanted):
        return _SAME[type(given)](given, wanted)
    regions = _as_region(given), _as_region(wanted)
    if regions[0] is not None and regions[1] is not None:
        return same_region(regions[0], regions[1])
    return _different_kinds(given, wanted)


def _simplest(form: Form, other: Form) -> Form:
    """Without a label that the other side lacks; a computation `24/2 = 12` as its result; a list of one as that one."""
    if isinstance(form, Equation) and not isinstance(other, Equation):
        if form.label:
            return _simplest(form.right, other)
        if isinstance(form.left, Expression) and equal_forms(form.left, form.right):
            return form.right
    if isinstance(form, Listing) and form.kind == "list" and all(_is_labelled(item) for item in form.items):
        return _without_labels(form, other)
    return form


def _is_labelled(form: Form) -> bool:
    return isinstance(form, Equation) and bool(form.label)


def _without_labels(form: Listing, other: Form) -> Form:
    """`x=1, x=2` as the list of values; `x=1, y=2` as a point, unless the other side is labelled too."""
    items = [item for item in form.items if isinstance(item, Equation)]
    labels = [item.label for item in items]
    if len(set(labels)) == 1:
        return Listing(tuple(item.right for item in items), "list")
    if isinstance(other, Bracketed) and labels == sorted(labels):
        return Bracketed("(", tuple(item.right for item in items), ")")
    return form


def _equal_amounts(given: Expression, wanted: Expression) -> bool | None:
    if given.unit is None and wanted.unit is None:
        equal = _equal_trees(given.tree, wanted.tree)
        # Degree signs inside an expression may be left out like any unit: tan 15 for tan 15 degrees.
        plain = [_without_degrees(side.tree) for side in (given, wanted)]
        one_sided = (plain[0] == given.tree) != (plain[1] == wanted.tree)
        return _equal_trees(*plain) if equal is False and one_sided else equal
    if given.unit is None or wanted.unit is None:
        bare, measured = (given, wanted) if given.unit is None else (wanted, given)
        return _equal_to_bare(measured, bare.tree)
    if given.unit.powers == wanted.unit.powers:
        scaled = [("*", side.tree, ("number", side.unit.factor)) for side in (given, wanted) if side.unit is not None]
        return _equal_trees(*scaled)
    angles = {"degree": DEGREE, "radian": ("number", Fraction(1))}
    bases = [side.unit.powers[0][0] if side.unit is not None and side.unit.powers else "" for side in (given, wanted)]
    if set(bases) == set(angles):
        return _equal_trees(("*", given.tree, angles[bases[0]]), ("*", wanted.tree, angles[bases[1]]))
    return False


def _equal_to_bare(measured: Expression, bare: Node) -> bool | None:
    """A number with a unit against one without: equal numbers, or a percentage's or an angle's value."""
    if _equal_trees(measured.tree, bare):
        return True
    base = measured.unit.powers if measured.unit is not None else ()
    if base == (("percent", 1),):
        return _equal_trees(("*", measured.tree, HUNDREDTH), bare)
    if base == (("degree", 1),) and "pi" in repr(bare):
        return _equal_trees(("*", measured.tree, DEGREE), bare)
    return False


def _equal_trees(given: Node, wanted: Node) -> bool | None:
    if given == wanted or {given[0], wanted[0]} & {"inf", "-inf"}:
        return given == wanted
    names = unknowns(given), unknowns(wanted)
    if max(map(len, names)) > MOST_UNKNOWNS:
        return None
    try:
        return equal_everywhere(given, wanted, derive_seed("forms", repr(given), repr(wanted)))
    except Unreadable:
        return None


def _without_degrees(tree: Node) -> Node:
    if tree == DEGREE:
        return ("number", Fraction(1))
    return tuple(_without_degrees(part) if isinstance(part, tuple) else part for part in tree)


def _all(verdicts: Sequence[bool | None]) -> bool | None:
    if any(verdict is False for verdict in verdicts):
        return False
    return None if any(verdict is None for verdict in verdicts) else True


def _equal_sequences(given: Sequence[Form], wanted: Sequence[Form]) -> bool | None:
    if len(given) != len(wanted):
        return False
    return _all([equal_forms(*pair) for pair in zip(given, wanted, strict=True)])


def _equal_listings(given: Listing, wanted: Listing) -> bool | None:
    """Lists are equal item by item in any order, sets where every item has an equal one on the other side.

    Truth values have an order; names joined by "and" are not the same ones joined by "or".
    """
    everything = (*given.items, *wanted.items)
    if all(isinstance(item, Words) and item.text in _TRUTH for item in everything):
        return _equal_sequences(given.items, wanted.items)
    if {given.word, wanted.word} == {"and", "or"} and any(map(is_name, everything)):
        return False
    if given.kind == wanted.kind == "list":
        return _paired(given.items, wanted.items)
    sure = True
    for mine, theirs in ((given.items, wanted.items), (wanted.items, given.items)):
        for item in mine:
            verdicts = [equal_forms(item, other) for other in theirs]
            if True not in verdicts:
                if None not in verdicts:
                    return False
                sure = False
    return True if sure else None


def _paired(given: Sequence[Form], wanted: Sequence[Form]) -> bool | None:
    """Whether each item has a partner of its own; greedy, as equality is transitive."""
    if len(given) != len(wanted):
        return False
    alone, left = [], list(wanted)
    for item in given:
        partner = next((position for position, other in enumerate(left) if equal_forms(item, other)), None)
        if partner is None:
            alone.append(item)
        else:
            left.pop(partner)
    if not alone:
        return True
    hopeful = all(any(equal_forms(item, other) is None for other in left) for item in alone)
    return None if hopeful else False


def _equal_brackets(given: Bracketed, wanted: Bracketed) -> bool | None:
    if (given.opening, given.closing) != (wanted.opening, wanted.closing):
        return False
    return _equal_sequences(given.items, wanted.items)


def _equal_matrices(given: Matrix, wanted: Matrix) -> bool | None:
    if [len(row) for row in given.rows] != [len(row) for row in wanted.rows]:
        return False
    cells = [
        _equal_cells(given.factor, mine, wanted.factor, theirs)
        for rows in zip(given.rows, wanted.rows, strict=True)
        for mine, theirs in zip(*rows, strict=True)
    ]
    return _all(cells)


def _equal_cells(left: Node, mine: Form, right: Node, theirs: Form) -> bool | None:
    if isinstance(mine, Expression) and isinstance(theirs, Expression):
        return _equal_trees(("*", left, mine.tree), ("*", right, theirs.tree))
    return None


def _equal_equations(given: Equation, wanted: Equation) -> bool | None:
    """The same solutions: one left-minus-right is a constant multiple of the other."""
    if given.label and given.label == wanted.label and equal_forms(given.right, wanted.right):
        return True
    trees = [_difference(side) for side in (given, wanted)]
    if trees[0] is None or trees[1] is None:
        return _equal_sides(given, wanted)
    if unknowns(trees[0]) != unknowns(trees[1]):
        return False
    try:
        points = sample_points((trees[0], trees[1]), derive_seed("equations", repr(trees[0]), repr(trees[1])))
        pairs = [(evaluate(trees[0], point), evaluate(trees[1], point)) for point in points]
    except Unreadable:
        return None
    first, second = pairs[0]
    if first == 0 or second == 0:
        return None
    same = all(close(left * second, right * first) for left, right in pairs)
    # Not multiples: surely different where both name the same thing, otherwise another way of writing may hide.
    if not same and given.label and given.label == wanted.label:
        return False
    return same or (False if _divides_away(given, wanted) or _divides_away(wanted, given) else None)


def _divides_away(divided: Equation, whole: Equation) -> bool:
    """Whether a letter below a fraction excludes solutions of the other equation: y = 0 in x/y = 1 for x = y."""
    trees = [_difference(divided), _difference(whole)]
    if divided.label or trees[0] is None or trees[1] is None:
        return False
    for letter in _divisors(trees[0]) - _divisors(trees[1]):
        try:
            points = sample_points((trees[0], trees[1]), derive_seed("divided", repr(trees[1])))
            values = [evaluate(trees[1], {**point, letter: Fraction(0)}) for point in points]
        except Unreadable:
            continue
        if values[0] == 0 or not all(close(values[0], value) for value in values):
            return True
    return False


def _divisors(tree: Node) -> set[str]:
    """The letters that divide something as they stand."""
    found = {tree[2][1]} if tree[0] == "/" and tree[2][0] == "unknown" else set()
    return found.union(*(_divisors(part) for part in tree[1:] if isinstance(part, tuple)))


def _equal_sides(given: Equation, wanted: Equation) -> bool | None:
    """Equations that are no expressions throughout: side by side, or crosswise."""
    for left, right in ((wanted.left, wanted.right), (wanted.right, wanted.left)):
        if equal_forms(given.left, left):
            return equal_forms(given.right, right)
    worded = any(isinstance(side, Words) for side in (given.left, wanted.left))
    return False if worded or given.label != wanted.label else None


def _difference(equation: Equation) -> Node | None:
    sides = equation.left, equation.right
    if any(not isinstance(side, Expression) or side.unit is not None for side in sides):
        return None
    return ("-", *(side.tree for side in sides if isinstance(side, Expression)))


def _equal_relations(given: Relation | Joined, wanted: Relation | Joined) -> bool | None:
    regions = region(given), region(wanted)
    if regions[0] is None or regions[1] is None:
        return None
    return same_region(regions[0], regions[1])


def _equal_joined(given: Joined, wanted: Joined) -> bool | None:
    verdict = _equal_relations(given, wanted)
    return _equal_listings(Listing(given.parts, "set"), Listing(wanted.parts, "set")) if verdict is None else verdict


def _equal_ratios(given: Ratio, wanted: Ratio) -> bool | None:
    """Equal quotients of neighbours."""
    if len(given.terms) != len(wanted.terms):
        return False
    products = zip(given.terms, given.terms[1:], wanted.terms, wanted.terms[1:], strict=False)
    return _all([_equal_trees(("*", a, d), ("*", b, c)) for a, b, c, d in products])


def _equal_clocks(given: Clock, wanted: Clock) -> bool:
    """17:30 is 5:30 pm; the half of the day may be left out on one side, but 12:30 is not 0:30."""
    same = (given.hours, given.minutes) == (wanted.hours, wanted.minutes)
    if same and not (given.half and wanted.half):
        return True
    return (given.hour_of_day, given.minutes) == (wanted.hour_of_day, wanted.minutes)


def _equal_words(given: Words, wanted: Words) -> bool | None:
    """Different words may still mean the same where one holds the other."""
    if given.text == wanted.text:
        return True
    return None if given.text in wanted.text or wanted.text in given.text else False


_SAME: dict[type, Any] = {
    Listing: _equal_listings,
    Bracketed: _equal_brackets,
    Matrix: _equal_matrices,
    Equation: _equal_equations,
    Relation: _equal_relations,
    Joined: _equal_joined,
    Words: _equal_words,
    Numeral: lambda given, wanted: given.value == wanted.value,
    Ratio: _equal_ratios,
    Clock: _equal_clocks,
}


def _is_quotient(tree: Node) -> bool:
    """Whether a ratio may be meant: 3/4 or 0.75, not the root of 3 nor 3."""
    return tree[0] == "/" or (tree[0] == "number" and tree[1].denominator > 1)


def _as_region(form: Form) -> Region | None:
    return region(form) if isinstance(form, Relation | Joined | Bracketed) else None


def _equal_vectors(column: Form, point: Form) -> bool | None:
    """A column or a row against a tuple in round brackets."""
    if not isinstance(column, Matrix) or not isinstance(point, Bracketed) or point.opening + point.closing != "()":
        return False
    cells = [cell for row in column.rows for cell in row]
    if len(cells) != len(point.items) or (len(column.rows) > 1 and len(column.rows[0]) > 1):
        return False
    one = ("number", Fraction(1))
    return _all([_equal_cells(column.factor, cell, one, item) for cell, item in zip(cells, point.items, strict=True)])


def _different_kinds(given: Form, wanted: Form) -> bool | None:
    """Different kinds differ, but for a ratio of two that is a fraction, and pairs that we know too little of."""
    kinds = {type(given), type(wanted)}
    if kinds == {Ratio, Expression}:
        ratio, plain = (given, wanted) if isinstance(given, Ratio) else (wanted, given)
        if isinstance(ratio, Ratio) and isinstance(plain, Expression) and len(ratio.terms) == 2 and plain.unit is None:
            return _equal_trees(("/", *ratio.terms), plain.tree) if _is_quotient(plain.tree) else False
    if kinds == {Matrix, Bracketed}:
        return _equal_vectors(*((given, wanted) if isinstance(given, Matrix) else (wanted, given)))
    if kinds & {Words, Numeral, Clock, Joined} or kinds == {Equation, Relation}:
        return (
            None if kinds <= {Words, Listing, Joined, Equation, Numeral, Expression, Clock, Ratio, Relation} else False
        )
    return False
