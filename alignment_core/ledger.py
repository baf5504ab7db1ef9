"""The ledger of a store: a line per publication, so that a deletion can be told from a first run."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_ledger(path: Path, mentioning: str) -> list[dict[str, Any]]:
    """The lines that have a text somewhere, oldest first; to decode them all is what takes long."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    wanted = json.dumps(mentioning)[1:-1]
    if wanted not in text:
        return []
    lines = []
    for line in text.splitlines():
        if wanted in line:
            with suppress(ValueError):  # a full disk can cut a line short; it tells only why a key is new
                lines.append(json.loads(line))
    return lines


def note_publication(path: Path, stage: str, key: str, label: str) -> None:
    """Add a line."""
    line = {"stage": stage, "key": key, "label": label, "time": time.time()}
    with path.open("ab") as file:
        if file.tell() and not _is_whole(path):
            file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def _is_whole(path: Path) -> bool:
    """Whether the last line is complete; a full disk can cut one short."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
