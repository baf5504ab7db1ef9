"""A bound on what a root keeps of a shared store: what was not used for longest goes first.

Only what the shared store has whole goes, never what is in use: what a study run under way stands on, what a stage
works with now, and what was asked for in the last minute. So a study larger than the bound exceeds it while it runs.
"""

import os
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from alignment_core.journal import keys_in_use
from alignment_core.locks import alone, use_lock
from alignment_core.manifest import Manifest
from alignment_core.remote import StoreError

if TYPE_CHECKING:
    from alignment_core.shared_store import SharedStore

RECENT_SECONDS = 60.0
"""Whoever asked for a path may still be about to open it."""


def shrink(shared: "SharedStore") -> list[Manifest]:
    """Drop artifacts of the root until it is within its bound; those that were dropped."""
    if shared.cache_bytes == float("inf"):
        return []
    dropped = []
    with alone(shared.root / ".locks" / "shrink.lock") as nobody_else:
        if nobody_else:
            total = sum(size_of(one) for one in shared.here.manifests())
            for manifest in _candidates(shared) if total > shared.cache_bytes else ():
                if total <= shared.cache_bytes:
                    break
                if _drop(shared, manifest):
                    dropped.append(manifest)
                    total -= size_of(manifest)
    return dropped


def size_of(manifest: Manifest) -> int:
    """Bytes of an artifact's files."""
    return sum(entry.size for entry in manifest.files.values())


def _candidates(shared: "SharedStore") -> Iterator[Manifest]:
    """What may go, the least recently used first."""
    busy = keys_in_use(shared.root)
    used = []
    for manifest in shared.here.manifests():
        if manifest.key not in busy and shared.is_noted(manifest.ref()):
            at = shared.note_path(manifest.stage, manifest.key).stat().st_mtime
            if time.time() - at > RECENT_SECONDS:
                used.append((at, manifest.key, manifest))
    return (manifest for _, _, manifest in sorted(used, key=lambda entry: entry[:2]))


def _drop(shared: "SharedStore", manifest: Manifest) -> bool:
    """Remove one artifact here if nobody uses it and the shared store, asked now, has it whole."""
    with alone(use_lock(shared.root, manifest.stage, manifest.key)) as nobody_else:
        if not nobody_else:
            return False
        try:
            there = shared.read_manifest(manifest.stage, manifest.key)
            if there.ref() != manifest.ref() or shared.find_flaw(there):
                return False
        except (FileNotFoundError, StoreError, ValueError):
            return False
        folder = shared.root / manifest.stage / manifest.key
        doomed = folder.with_name(f"{folder.name}.tmp-evicted{os.getpid()}")
        folder.rename(doomed)  # first, so that one that a kill caught half removed does not look whole
        shutil.rmtree(doomed)
        shared.here.verified_path(manifest.stage, manifest.key).unlink(missing_ok=True)
        return True
