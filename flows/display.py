"""What a person sees of a running study: a line per finished stage, a live bar for each one under way."""

import time
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from alignment_core.events import Event
from alignment_core.interruption import exit_code_of
from alignment_core.stage import StageOutcome
from tasks.progress import headline

COLOURS = {"cached": "dim", "ran": "green", "resumed": "yellow"}
QUIET_SECONDS = 30.0
"""Between two lines of progress where there is no terminal to draw a bar on."""


class RichListener:
    """Draws stages on a terminal; on a pipe it prints a line as each begins and ends, and one now and then between."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            transient=True,
        )
        self._bars: dict[str, TaskID] = {}
        self._first: dict[str, tuple[int, float]] = {}
        self._told: dict[str, float] = {}

    def __enter__(self) -> "RichListener":
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def started(self, label: str, stage: str, reason: str) -> None:
        """Show the bar of a new stage."""
        self._drop_bar(label)
        if not self.console.is_terminal:
            self.console.print(f" running            {escape(label)}  [dim]{escape(reason)}[/dim]", highlight=False)
        self._told[label] = time.time()
        why = f"[dim]{escape(reason)}[/dim]"
        self._bars[label] = self._progress.add_task(escape(label), total=None, rate="", metrics=why)

    def event(self, label: str, event: Event) -> None:
        """Move the bar; print what the stage says."""
        if event.kind == "say":
            self.console.print(f"  [dim]{escape(label)}:[/dim] {escape(event.name)}", highlight=False)
        bar = self._bars.get(label)
        if event.kind != "point" or bar is None:
            return
        step, began = self._first.setdefault(label, (event.step, event.time))
        elapsed = event.time - began
        rate = f"{(event.step - step) / elapsed:.1f}/s" if elapsed > 0.5 else ""
        shown = headline(event.metrics)
        fields = {"rate": rate} | ({"metrics": shown} if shown else {})
        self._progress.update(bar, completed=event.step, total=event.total, **fields)  # type: ignore[arg-type]
        if not self.console.is_terminal and shown and event.time - self._told.get(label, 0.0) >= QUIET_SECONDS:
            self._told[label] = event.time
            self.console.print(f"  … {escape(label)}: step {event.step}/{event.total}  {shown}", highlight=False)

    def finished(self, label: str, outcome: StageOutcome) -> None:
        """One line that stays."""
        self._drop_bar(label)
        colour = COLOURS[outcome.how]
        seconds = "" if outcome.how == "cached" else f"{outcome.seconds:6.1f} s"
        origin = f"[dim]{outcome.ref.key[:12]}  {escape(outcome.reason)}[/dim]"
        self.console.print(
            f"[{colour}]{outcome.how:>8}[/{colour}] {seconds:>9}  {escape(label)}  {origin}", highlight=False
        )

    def failed(self, label: str, error: BaseException) -> None:
        """One line that stays; the reason itself comes last, from the command."""
        self._drop_bar(label)
        word, colour = ("stopped", "yellow") if exit_code_of(error) else (" failed", "red")
        self.console.print(f"[{colour}] {word}[/{colour}]            {escape(label)}", highlight=False)

    def _drop_bar(self, label: str) -> None:
        if label in self._bars:
            self._progress.remove_task(self._bars.pop(label))


def results_table(rows: list[dict[str, Any]]) -> Table:
    """Method, n, accuracy with its 95 % interval, format rate, tokens, time."""
    table = Table(box=box.SIMPLE_HEAD, caption="accuracy % with its 95 % Wilson interval; tokens: mean per answer")
    for name in ("method", "n", "accuracy", "interval", "format %", "tokens", "trained"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in rows:
        seconds = row["training_seconds"]
        table.add_row(
            row["method"],
            str(row["n"]),
            f"{100 * row['accuracy']:.1f}",
            f"{100 * row['accuracy_low']:.1f}-{100 * row['accuracy_high']:.1f}",
            f"{100 * row['format_rate']:.1f}",
            f"{row['mean_length']:.0f}",
            f"{seconds:.0f} s" if seconds else "-",
        )
    return table
