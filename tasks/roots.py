"""The root folder of a study: whether it can be used at all, asked before anything is computed."""

import os
import tempfile
from pathlib import Path

ROOT = "ALIGNFLOW_ROOT"
"""Names the root where none is given: each host has its own."""


def root_folder(given: str | None) -> Path:
    """The root: the folder given, else the one that ALIGNFLOW_ROOT names, else the current one."""
    return Path(given or os.environ.get(ROOT) or ".").resolve()


def require_writable(root: Path) -> Path:
    """Make the store and the tracker's folder under `root`; the store's folder.

    Raises ValueError, with the remedy, if either cannot be made or takes no file: a root can be there and read-only.
    """
    store, records = root / "data" / "store", root / "mlruns"
    for folder in (store, records):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(
                f"cannot write under {root}: {folder}: {error.strerror or error}. "
                "Choose another folder with --root, or change its owner or mode"
            ) from error
    return store
