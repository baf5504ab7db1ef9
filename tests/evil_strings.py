"""Strings built against each regular expression of the grader, from the expression's own parse tree.

A backtracking engine runs wild where a repetition can begin or end in many places and the match then fails. So for
every unbounded repetition: reach it, feed it, and end in something it cannot take; and the same start over and over.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from re import _constants as op
from re import _parser
from types import ModuleType
from typing import Any, NamedTuple

from alignment_core.fingerprint import fingerprint

UNBOUNDED = 30
"""Repetitions that may go on for so long count as endless."""
ALPHABET = "a1 \\{}()[].,-+^x%$/=|&;:'\"<>_Aé\n\x00"
NO_JUDGES = {"alignment_core.traces", "alignment_core.config", "alignment_core.records"}
"""Imported along with the grader, but no verdict passes through them."""
FAST = (
    "grading:compare",
    "readings:READERS",
    "answer_parsers:parse_gsm8k_response",
    "answer_parsers:parse_mmlu_response",
)
THOROUGH = ("thorough:compare_thoroughly",)
"""Where verdicts begin; those of the thorough mode are made in children under limits."""
CALLS = {"compile", "sub", "subn", "fullmatch", "match", "search", "findall", "finditer", "split"}


def grading_rooms(entries: Sequence[str] = FAST) -> list[ModuleType]:
    """The modules of the core that a verdict passes through, as far as names lead from where it begins."""
    reached = (label for entry in entries for label in fingerprint(f"alignment_core.{entry}").definitions)
    names = {label.rpartition(".")[0] for label in reached} - NO_JUDGES
    return [importlib.import_module(name) for name in sorted(names)]


def expressions(entries: Sequence[str] = FAST) -> dict[str, re.Pattern[str]]:
    """Every regular expression of the grading rooms by name: compiled constants, and literals in calls of `re`."""
    found: dict[str, re.Pattern[str]] = {}
    for module in grading_rooms(entries):
        room = module.__name__.rpartition(".")[2]
        for name, value in vars(module).items():
            for index, pattern in enumerate(_patterns(value)):
                found[f"{room}.{name}" + f".{index}" * bool(index)] = pattern
        for call in regex_calls(module):
            if isinstance(call.args[0], ast.Constant) and call.func.attr != "compile":  # type: ignore[attr-defined]
                found[f"{room}.line{call.lineno}"] = re.compile(call.args[0].value)
    return found


def regex_calls(module: ModuleType) -> list[ast.Call]:
    """Calls of `re.compile`, `re.sub` and the like in a module's source."""
    tree = ast.parse(inspect.getsource(module))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [
        call
        for call in calls
        if isinstance(call.func.value, ast.Name) and call.func.value.id == "re" and call.func.attr in CALLS
    ]


def _patterns(value: object) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _patterns(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _patterns(item)


class Pump(NamedTuple):
    """What leads to an endless repetition, many turns of it, and an end it cannot take."""

    before: str
    unit: str
    after: str

    def text(self, length: int) -> str:
        """A string of about `length` characters."""
        return self.before + self.unit * max(1, (length - len(self.before)) // len(self.unit)) + self.after


def pumps(pattern: re.Pattern[str]) -> list[Pump]:
    """The strings that give each repetition of the expression the most to try: one long run, and many short ones."""
    found: dict[Pump, None] = {}
    for prefix, unit in _pumps(_parser.parse(pattern.pattern, pattern.flags), ""):
        for end in ("", "\x00", "!"):
            found[Pump(prefix, unit, end)] = None
        found[Pump("", prefix + unit, "\x00")] = None
        found[Pump("", prefix + unit * 30, "")] = None
    return list(found)


def _pumps(tree: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """(what leads to an endless repetition, one turn of it), for each, nested ones and alternatives too."""
    for kind, value in tree:
        if kind in {op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT}:
            _, most, inner = value
            if most is op.MAXREPEAT or most >= UNBOUNDED:
                yield from ((prefix, unit) for unit in _samples(inner) if unit)
            yield from _pumps(inner, prefix)
        elif kind is op.BRANCH:
            for alternative in value[1]:
                yield from _pumps(alternative, prefix)
        elif kind is op.SUBPATTERN:
            yield from _pumps(value[3], prefix)
        elif kind in {op.ASSERT, op.ASSERT_NOT}:
            yield from _pumps(value[1], prefix)
        prefix += _samples([(kind, value)])[0]


def _samples(tree: Any) -> list[str]:
    """Up to a few short texts that the tree matches, the first one the plainest."""
    texts = [""]
    for kind, value in tree:
        texts = [text + choice for text in texts for choice in _choices(kind, value)][:6]
    return texts


def _choices(kind: Any, value: Any) -> list[str]:
    if kind is op.LITERAL:
        return [chr(value)]
    if kind in {op.ANY, op.NOT_LITERAL}:
        return [char for char in ALPHABET if kind is op.ANY or ord(char) != value][:3]
    if kind is op.IN:
        return [char for char in ALPHABET if _accepts(value, char)][:3] or [_first(value)]
    if kind in {op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT}:
        return [text * max(1, value[0]) for text in _samples(value[2])[:2]]
    if kind is op.BRANCH:
        return [text for alternative in value[1] for text in _samples(alternative)[:1]][:4]
    if kind is op.SUBPATTERN:
        return _samples(value[3])
    if kind is op.ATOMIC_GROUP:
        return _samples(value)
    if kind is op.ASSERT and value[0] < 0:
        return _samples(value[1])[:1]
    return [""]


def _first(items: Any) -> str:
    """A character of a class that the alphabet does not meet."""
    kind, value = next(item for item in items if item[0] is not op.NEGATE)
    return chr(value if kind is op.LITERAL else value[0])


def _accepts(items: Any, char: str) -> bool:
    negated = items[0][0] is op.NEGATE
    categories = {
        op.CATEGORY_DIGIT: char.isdigit(), op.CATEGORY_SPACE: char.isspace(), op.CATEGORY_WORD: char.isalnum(),
        op.CATEGORY_NOT_DIGIT: not char.isdigit(), op.CATEGORY_NOT_SPACE: not char.isspace(),
        op.CATEGORY_NOT_WORD: not char.isalnum() and char != "_",
    }  # fmt: skip
    inside = any(
        (kind is op.LITERAL and ord(char) == value)
        or (kind is op.RANGE and value[0] <= ord(char) <= value[1])
        or (kind is op.CATEGORY and categories[value])
        for kind, value in items
    )
    return inside != negated
