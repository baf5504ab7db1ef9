"""`alignflow grade`: verdicts on JSONL files of any size, read, graded and written as a stream.

A row needs a response and a ground truth (a text, a number, or a list of which any one counts). What is written is
the row with the verdict's fields, in order. A row that cannot be read is reported and left out.
"""

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from alignment_core.config import RewardName
from alignment_core.disk import disk_errors
from alignment_core.interruption import stopping_on_sigterm
from alignment_core.records import GradedResponse
from alignment_core.rewards import GradesUnderWay, submit_batch
from alignment_core.verdicts import GradingMode, GroundTruth

RESPONSE_KEYS = ("response", "output", "completion", "generation")
TRUTH_KEYS = ("ground_truth", "answer", "gold", "expected_answer")
STDIN = "-"
MAX_LINE = 16 * 2**20
"""Bytes of the longest line that is read."""
BATCH_ROWS = 256
BATCH_BYTES = 4 * 2**20
"""A batch is full when it has so many rows, or so many bytes of lines."""
TOLD = 100
"""Malformed rows reported one by one; the rest is counted."""


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


COUNTED: Mapping[str, Callable[[GradedResponse], bool]] = {
    "formatted": lambda grade: grade.format_reward == 1,
    "right": lambda grade: grade.reward == 1,
    "suspicious": lambda grade: grade.suspicious,
    "timeouts": lambda grade: grade.status == "timeout",
    "errors": lambda grade: grade.status == "error",
    "right by thorough only": lambda grade: grade.fast_reward == 0 and grade.reward == 1,
    "right by fast only": lambda grade: grade.fast_reward == 1 and grade.reward == 0,
}
"""What the summary counts, by name."""


@dataclass
class Tally:
    """What was counted over all rows."""

    rows: int = 0
    malformed: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))

    def add(self, grade: GradedResponse) -> None:
        """Count one verdict."""
        self.rows += 1
        for name, counts in COUNTED.items():
            self.counts[name] += counts(grade)


def grade_files(
    sources: Sequence[str], out: Path | None, reward: RewardName, mode: GradingMode, workers: int, keys: Keys
) -> Tally:
    """Grade all rows of the files (`-` is stdin) and write them to `out`, which appears once it is complete.

    Raises ValueError or OSError, before anything is graded, for what cannot work.
    """
    _check(sources, out, reward, mode, workers)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    tally, began = Tally(), time.perf_counter()
    folder = out.parent if out is not None else Path.cwd()
    with stopping_on_sigterm(), disk_errors(folder), _published(out) as file, _bar(console, sources) as progress:
        lines = (line for source in sources for line in read_lines(source, keys))
        batches = _batches(_told(lines, tally, console, progress))
        for rows, grades in _graded(batches, reward, mode, workers):
            for row, grade in zip(rows, grades, strict=True):
                tally.add(grade)
                if file is not None:
                    file.write(json.dumps(_merged(row.fields, grade)) + "\n")
            progress.update(progress.task_ids[0], rows=tally.rows)
    tally.seconds = time.perf_counter() - began
    if tally.malformed > TOLD:
        console.print(f"... and {tally.malformed - TOLD:,} more malformed rows", markup=False)
    return tally


def summary_table(tally: Tally, mode: GradingMode) -> Table:
    """The counts for people, with their share of the rows."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_row("rows", f"{tally.rows:,}", "")
    for name, count in tally.counts.items():
        if mode == "thorough" or "only" not in name:
            table.add_row(name, f"{count:,}", f"{100 * count / tally.rows:.1f} %" if tally.rows else "")
    table.add_row("malformed, left out", f"{tally.malformed:,}", "")
    table.add_row("rows/s", f"{tally.rows / tally.seconds:,.0f}" if tally.seconds else "-", "")
    return table


def _check(sources: Sequence[str], out: Path | None, reward: RewardName, mode: GradingMode, workers: int) -> None:
    try:
        submit_batch([], [], reward, mode, workers)
    except ImportError as error:
        raise ValueError(str(error)) from error
    for source in sources:
        if source != STDIN and not Path(source).is_file():
            raise ValueError(f"{source}: no such file; give JSONL files, or - for stdin")
    if list(sources).count(STDIN) > 1:
        raise ValueError("stdin can be read once: give - once")
    if out is None:
        return
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: give the path of a file in a folder that exists")
    if any(source != STDIN and out.exists() and out.samefile(source) for source in sources):
        raise ValueError(f"--out {out} is one of the files to be graded: give another name")


# Reading


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
    raise ValueError(f"no {' or '.join(names)}: name the key with {option}")


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


# Streaming


def _told(lines: Iterable[Row | Malformed], tally: Tally, console: Console, progress: Progress) -> Iterator[Row]:
    """The good rows; the others are reported as they come by."""
    for line in lines:
        progress.advance(progress.task_ids[0], line.size)
        if isinstance(line, Row):
            yield line
            continue
        tally.malformed += 1
        if tally.malformed <= TOLD:
            console.print(f"{line.where}: {line.reason}", markup=False)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row.size
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _graded(
    batches: Iterable[list[Row]], reward: RewardName, mode: GradingMode, workers: int
) -> Iterator[tuple[list[Row], list[GradedResponse]]]:
    """Each batch with its verdicts, in order; the children compare one while the next ones are read."""
    under_way: deque[tuple[list[Row], GradesUnderWay]] = deque()
    for rows in batches:
        responses, truths = [row.response for row in rows], [row.truth for row in rows]
        under_way.append((rows, submit_batch(responses, truths, reward, mode, workers)))
        if len(under_way) > 1 + workers:
            oldest, grades = under_way.popleft()
            yield oldest, grades.result()
    for oldest, grades in under_way:
        yield oldest, grades.result()


def _merged(fields: dict[str, Any], grade: GradedResponse) -> dict[str, Any]:
    """The row with the verdict's fields in place of those of an earlier verdict."""
    kept = {name: value for name, value in fields.items() if name not in GradedResponse.model_fields}
    return {**kept, **grade.model_dump(exclude_none=True)}


# Output


@contextmanager
def _published(out: Path | None) -> Iterator[TextIO | None]:
    """A file that takes its name once the block has ended well, and is gone if it has not."""
    if out is None:
        yield None
        return
    draft = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with draft.open("w", encoding="ascii") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _bar(console: Console, sources: Sequence[str]) -> Iterator[Progress]:
    """A bar over the bytes read, on a terminal only."""
    total = None if STDIN in sources else sum(Path(source).stat().st_size for source in sources)
    columns = (
        TextColumn("grading"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
    )
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    bar.add_task("grading", total=total, rows=0)
    with bar:
        yield bar
