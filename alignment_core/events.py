"""A stage's own record: one JSON line per event, in the order in which they happened."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from alignment_core.manifest import RECORD
from alignment_core.records import Record

EVENTS = "events.jsonl"


class Event(Record):
    """One line of a stage's own record."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a loss that is not a number must not break the record

    kind: Literal["point", "rows", "say", "checkpoint"]
    """`checkpoint`: everything before it is durable and will not be taken back by a resume."""
    step: int
    time: float
    """Unix time, seconds."""
    metrics: dict[str, float] = Field(default_factory=dict)
    total: int | None = None
    """Steps expected in all, where known."""
    name: str = ""
    """Name of the table of a `rows` event; text of a `say` event."""
    rows: list[dict[str, Any]] = Field(default_factory=list)


OnEvent = Callable[[Event], None]


def read_events(artifact: Path) -> Iterator[Event]:
    """The record of a finished stage, line by line."""
    with (artifact / RECORD / EVENTS).open("r", encoding="utf-8") as file:
        for line in file:
            yield Event.model_validate_json(line)
