"""flock on files of the store: freed by the kernel when a process dies, however it dies."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from alignment_core.records import ArtifactRef


@contextmanager
def exclusive(path: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock of one's own; whoever has to wait for it hears for whom before it does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not try_lock(file, fcntl.LOCK_EX):
            file.seek(0)
            on_wait(file.read().strip() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock, waiting for it in silence."""
    with exclusive(path, lambda _holder: None):
        yield


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether the lock could be had at once; if so, it is held within the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        yield try_lock(file, fcntl.LOCK_EX)


@contextmanager
def in_use(store: Path) -> Iterator[None]:
    """Nothing is removed from this store within the block; waits while somebody does."""
    with open_store_lock(store) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def use_lock(store: Path, stage: str, key: str) -> Path:
    """The file whose lock whoever works with an artifact shares, and whoever drops it from a cache has alone."""
    return store / ".locks" / "use" / f"{stage}-{key}.lock"


@contextmanager
def artifacts_in_use(store: Path, refs: Iterable[ArtifactRef]) -> Iterator[None]:
    """These artifacts are not dropped from the cache of a shared store within the block."""
    with ExitStack() as stack:
        for ref in refs:
            path = use_lock(store, ref.stage, ref.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(path.open("a")), fcntl.LOCK_SH)
        yield


def open_store_lock(store: Path) -> IO[str]:
    """The file whose lock whoever works on a store shares, and whoever removes artifacts has alone."""
    path = store / ".locks" / "store.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a", encoding="utf-8")


def try_lock(file: IO[Any], kind: int) -> bool:
    """Whether the lock could be had at once."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
