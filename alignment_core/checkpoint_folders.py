"""Checkpoints as folders on disk: when one counts as complete, and whether it still holds what was written.

A complete checkpoint has the marker `complete.json`, written after everything else is durable. The marker lists each
file with its size and CRC-32. That finds truncation and bit rot at several GB/s; checkpoints are of this host's own
making, so no protection against forgery is meant (artifacts have sha256).
"""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from alignment_core.durable import sync_file, write_durably

MARKER = "complete.json"
CHUNK = 2**22
"""Bytes read at a time."""


def seal(staging: Path, marker: dict[str, Any]) -> None:
    """Make the files of a staged checkpoint durable, then the marker that lists them.

    A file is read back while the next one is written to disk.
    """
    files = sorted(path for path in staging.rglob("*") if path.is_file() and path.name != MARKER)
    with ThreadPoolExecutor(max_workers=1) as reader:
        sums = [reader.submit(_describe, path) for path in files]
        for path in files:
            sync_file(path)
        listed = {path.relative_to(staging).as_posix(): each.result() for path, each in zip(files, sums, strict=True)}
    write_durably(staging / MARKER, json.dumps({**marker, "files": listed}))


def complete_checkpoints(folder: Path) -> list[Path]:
    """The folders under `folder` that have a marker, by step."""
    return sorted(path.parent for path in folder.glob(f"[0-9]*/{MARKER}"))


def crc32(path: Path, length: int) -> int:
    """CRC-32 of the first bytes of a file."""
    total = 0
    with path.open("rb") as file:
        while length > 0 and (chunk := file.read(min(CHUNK, length))):
            total, length = zlib.crc32(chunk, total), length - len(chunk)
    return total


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """What was noted when the checkpoint was complete."""
    marker: dict[str, Any] = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    return marker


def find_flaw(checkpoint: Path) -> str:
    """What is wrong with a complete checkpoint's files, in words; empty if nothing."""
    try:
        listed = read_marker(checkpoint).get("files", {})
    except ValueError:
        return f"{MARKER} is unreadable"
    for name, (size, _) in listed.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return next((f"{name} was changed" for name, entry in listed.items() if _describe(checkpoint / name) != entry), "")


def _describe(path: Path) -> list[int]:
    """Size and CRC-32."""
    size = path.stat().st_size
    return [size, crc32(path, size)]
