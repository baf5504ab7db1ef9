"""What is known of files whose modification time is not the published one: hashed once, found equal, remembered.

A copy of a root, a restored backup and `touch` change times and no content. Without a memory each lookup would hash
such a file again, for ever. The memory lies outside the artifact and may be removed at any time.
"""

import json
import os
import uuid
from contextlib import suppress
from pathlib import Path


class VerifiedFiles:
    """The memory of one artifact: file name -> the content and the state of the file that was hashed."""

    def __init__(self, path: Path, remembers: bool = True) -> None:
        self._path = path
        self._remembers = remembers
        self._known: dict[str, list[object]] | None = None
        self._changed = False

    def knows(self, name: str, sha256: str, stat: os.stat_result) -> bool:
        """Whether the file, in exactly this state, was once found to have this content."""
        return self._entries().get(name) == _state(sha256, stat)

    def add(self, name: str, sha256: str, stat: os.stat_result) -> None:
        """Remember it; `stat` was taken before the file was read, so that a later edit is felt."""
        self._entries()[name] = _state(sha256, stat)
        self._changed = True

    def save(self) -> None:
        """Write what was added; a store that cannot be written is looked up all the same, only slower."""
        if not (self._changed and self._remembers):
            return
        temporary = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex[:8]}")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._known), encoding="utf-8")
            temporary.rename(self._path)

    def _entries(self) -> dict[str, list[object]]:
        if self._known is None:
            try:
                found = json.loads(self._path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                found = {}
            self._known = found if isinstance(found, dict) else {}
        return self._known


def _state(sha256: str, stat: os.stat_result) -> list[object]:
    """The change time tells an edit from a file whose modification time was put back afterwards."""
    return [sha256, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
