"""The kinds of things an answer can be, for the thorough verdict; `form_reading` finds which one a text is."""

from typing import NamedTuple

from alignment_core.numeric import Node
from alignment_core.units import Unit


class Expression(NamedTuple):
    """A number or an expression in letters, with the unit behind it, if any."""

    tree: Node
    unit: Unit | None = None


class Listing(NamedTuple):
    """Several answers: `1, 2` (kind "list"), or a set in braces (kind "set"). Order does not count.

    `word` is `and` or `or` where that word, and not the other, joins them.
    """

    items: tuple["Form", ...]
    kind: str
    word: str = ""


class Bracketed(NamedTuple):
    """A tuple, a vector, a point or an interval: order and brackets count."""

    opening: str
    items: tuple["Form", ...]
    closing: str


class Matrix(NamedTuple):
    """Rows of cells, times a factor."""

    rows: tuple[tuple["Form", ...], ...]
    factor: Node


class Equation(NamedTuple):
    """`left = right`; `label` is the left side's text where it only names the right one (`x`, `f(x)`, `AB`)."""

    left: "Form"
    right: "Form"
    label: str


class Relation(NamedTuple):
    """A chain of inequalities: `sides[0] signs[0] sides[1] ...`."""

    sides: tuple[Node, ...]
    signs: tuple[str, ...]


class Joined(NamedTuple):
    """Parts joined by `\\cup` or `or`; with `every`, inequalities joined by `and`."""

    parts: tuple["Form", ...]
    every: bool = False


class Words(NamedTuple):
    """Text, without case and articles."""

    text: str


class Numeral(NamedTuple):
    """Digits in a stated base."""

    value: int


class Ratio(NamedTuple):
    """`3:4`, `1:2:3`."""

    terms: tuple[Node, ...]


class Clock(NamedTuple):
    """A time of day; `half` is `am`, `pm` or empty."""

    hours: int
    minutes: int
    half: str

    @property
    def hour_of_day(self) -> int:
        """0 to 24; without a half as it is written."""
        return self.hours % 12 + 12 * (self.half == "pm") if self.half and self.hours < 13 else self.hours


Form = Expression | Listing | Bracketed | Matrix | Equation | Relation | Joined | Words | Numeral | Ratio | Clock


def is_name(form: Form) -> bool:
    """Whether a form names something: words, or a capital letter."""
    if isinstance(form, Expression):
        return form.tree[0] == "unknown" and form.tree[1].isupper()
    return isinstance(form, Words)
