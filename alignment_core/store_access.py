"""Opening the store of a root, with the shared store that the environment names behind it."""

import os
from pathlib import Path

from alignment_core.remote import RemoteFolder
from alignment_core.shared_store import SharedStore
from alignment_core.sharing import CACHE_GB, STORE, setting
from alignment_core.store import Store


def open_store(root: Path, remembers: bool = True) -> Store:
    """The store under a root folder (ROOT/data/store); with ALIGNFLOW_STORE it is the cache of that shared store.

    Raises StoreRefused, with the remedy, if the environment names a store that cannot be used at all.
    """
    return open_store_folder(root / "data" / "store", remembers)


def open_store_folder(folder: Path, remembers: bool = True) -> Store:
    """The same, given the store's own folder."""
    url = os.environ.get(STORE, "").strip()
    if not url:
        return Store(folder, remembers)
    if "://" not in url:
        url = str(Path(url).expanduser().resolve())
    return Store(folder, remembers, SharedStore(RemoteFolder(url), folder, setting(CACHE_GB) * 1e9, remembers))
