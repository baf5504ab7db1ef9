"""`alignflow grade`: verdicts on JSONL files of any size, read, graded and written as a stream.

A row needs a response and a ground truth (a text, a number, or a list of which any one counts). What is written is
the row with the verdict's fields, in order. A row that cannot be read is reported and left out.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from alignment_core.config import RewardName
from alignment_core.disk import disk_errors
from alignment_core.interruption import stopping_on_sigterm
from alignment_core.records import GradedResponse
from alignment_core.rewards import GradesUnderWay, submit_batch
from alignment_core.verdicts import GradingMode
from flows.grading_rows import RESPONSE_KEYS as RESPONSE_KEYS
from flows.grading_rows import STDIN, Malformed, Row, check_source, read_lines
from flows.grading_rows import TRUTH_KEYS as TRUTH_KEYS
from flows.grading_rows import Keys as Keys

BATCH_ROWS = 256
BATCH_BYTES = 4 * 2**20
"""A batch is full when it has so many rows, or so many bytes of lines."""
TOLD = 100
"""Malformed rows reported one by one; the rest is counted."""
HOPELESS = 100
"""Grading stops when so many rows come first and every one is malformed."""


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
    """What was counted over all rows, and how they were graded."""

    reward: str = ""
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
    tally, began = Tally(reward), time.perf_counter()
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
    table.add_row("reward", tally.reward, "")
    table.add_row("mode", mode, "")
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
    if list(sources).count(STDIN) > 1:
        raise ValueError("stdin can be read once: give - once")
    for source in sources:
        if source != STDIN:
            check_source(Path(source))
    if out is None:
        return
    if str(out) == STDIN:
        raise ValueError("--out -: graded rows are not written to stdout, which has the summary; give a file's path")
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: give the path of a file in a folder that exists")
    if any(source != STDIN and out.exists() and out.samefile(source) for source in sources):
        raise ValueError(f"--out {out} is one of the files to be graded: give another name")


# Streaming


def _told(lines: Iterable[Row | Malformed], tally: Tally, console: Console, progress: Progress) -> Iterator[Row]:
    """The good rows; the others are reported as they come by, those before the first good row together.

    Raises ValueError when the first HOPELESS rows are all malformed.
    """
    held: list[Malformed] | None = []
    for line in lines:
        progress.advance(progress.task_ids[0], line.size)
        if isinstance(line, Row):
            _tell(held or [], console)
            held = None
            yield line
            continue
        tally.malformed += 1
        if held is None:
            _tell([line] if tally.malformed <= TOLD else [], console)
            continue
        held.append(line)
        if len(held) == HOPELESS:
            raise ValueError(f"the first {HOPELESS} rows cannot be graded; {held[0].where}: {held[0].reason}")
    if held and len({line.reason for line in held}) == 1:
        more = f"; so are all {len(held)} rows" if len(held) > 1 else ""
        held = [held[0]._replace(reason=held[0].reason + more)]
    _tell(held or [], console)


def _tell(malformed: Iterable[Malformed], console: Console) -> None:
    for line in malformed:
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
        opened = draft.open("w", encoding="ascii")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"--out {out}: {reason}: give a file in a folder that can be written") from error
    try:
        with opened as file:
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
