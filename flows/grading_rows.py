"""Rows of JSONL files for `alignflow grade`: read one by one, checked, and reported where they cannot be graded."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from alignment_core.verdicts import GroundTruth

RESPONSE_KEYS = ("response", "output", "completion", "generation")
TRUTH_KEYS = ("ground_truth", "answer", "gold", "expected_answer")
STDIN = "-"
MAX_LINE = 16 * 2**20
"""Bytes of the longest line that is read."""
SHOWN_KEYS = 12
GZIP = b"\x1f\x8b"


class Row(NamedTuple):
    """A line that can be graded."""

    fields: dict[str, Any]
    response: str
    truth: GroundTruth
    size: int


class Malformed(NamedTuple):
    """A line that cannot, and why."""

    where: str
    reason: str
    size: int


@dataclass(frozen=True)
class Keys:
    """Where a row holds its response and its ground truth: the first of these keys that it has."""

    response: tuple[str, ...] = RESPONSE_KEYS
    truth: tuple[str, ...] = TRUTH_KEYS


def check_source(source: Path) -> None:
    """Raises ValueError where `source` is no file of rows; opens it for that."""
    if source.is_dir():
        raise ValueError(f"{source} is a folder: give the files in it, such as {source / '*.jsonl'}")
    if not source.is_file():
        raise ValueError(f"{source}: no such file; give JSONL files, or - for stdin")
    with source.open("rb") as file:
        _check_beginning(file.read(64), str(source))


def _check_beginning(text: bytes, name: str) -> None:
    """Raises ValueError for what is no text of lines at all."""
    if text.startswith(GZIP):
        raise ValueError(f"{name} is compressed: unpack it first, as in `gunzip -c FILE | alignflow grade -`")
    if text.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        raise ValueError(f"{name} is a JSON array: write one object per line, as `jq -c '.[]' FILE` does")


def read_lines(source: str, keys: Keys) -> Iterator[Row | Malformed]:
    """The rows of one file, lazily; blank lines are skipped."""
    if source == STDIN:
        yield from _rows_of(sys.stdin.buffer, "stdin", keys)
        return
    with Path(source).open("rb") as file:
        yield from _rows_of(file, source, keys)


def _rows_of(file: BinaryIO, name: str, keys: Keys) -> Iterator[Row | Malformed]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            _check_beginning(line[:64], name)
        size = len(line)
        where = f"{name}, line {number}"
        if size > MAX_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                size += len(rest)
            yield Malformed(where, f"longer than {MAX_LINE:,} bytes", size + len(rest))
        elif line.strip():
            try:
                yield parse_row(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, keys)
            except ValueError as error:
                yield Malformed(where, str(error), size)


def parse_row(line: bytes, keys: Keys) -> Row:
    """A line as a row; raises ValueError with what is wrong."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not readable as JSON: nested too deep") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise ValueError(f"not readable as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{_kind(fields)}, not an object")
    response = fields[_key(fields, keys.response, "--response-key")]
    name = _key(fields, keys.truth, "--truth-key")
    if not isinstance(response, str):
        raise ValueError(f"the response is {_kind(response)}, not a text")
    return Row(fields, response, _truth(fields[name], name), len(line))


def _key(fields: dict[str, Any], names: Sequence[str], option: str) -> str:
    for name in names:
        if name in fields:
            return name
    there = ", ".join(ascii(name)[1:-1][:40] for name in islice(fields, SHOWN_KEYS)) or "none"
    more = f" and {len(fields) - SHOWN_KEYS} more" if len(fields) > SHOWN_KEYS else ""
    raise ValueError(f"no {' or '.join(names)}: name the key with {option} (the row's keys: {there}{more})")


def _truth(value: Any, name: str) -> GroundTruth:
    """A ground truth as the grader takes it; raises ValueError."""
    golds = value if isinstance(value, list) else [value]
    for gold in golds:
        if isinstance(gold, bool) or not isinstance(gold, str | int | float):
            raise ValueError(f"{name} holds {_kind(gold)}: give a text, a number, or a list of them")
        if isinstance(gold, float) and not math.isfinite(gold):
            raise ValueError(f"{name} holds {gold}, which is no number")
    if not golds:
        raise ValueError(f"{name} is an empty list: give at least one gold answer")
    return list(golds) if isinstance(value, list) else golds[0]


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
