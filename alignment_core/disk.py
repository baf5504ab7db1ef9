"""A full disk, said in words: which one, and what to do."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment_core.remote import StoreError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
MEGABYTE = 1e6


class DiskFullError(OSError):
    """No room left; the message names the disk and the remedy."""


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a full disk raises inside the block into a `DiskFullError` about the disk that `folder` lies on."""
    try:
        yield
    except (DiskFullError, StoreError):  # a shared store that is full says so itself
        raise
    except Exception as error:  # libraries wrap the system's error in types of their own, of no common base
        if not is_disk_full(error):
            raise
        raise DiskFullError(explain_full_disk(error, folder)) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says "no space left" or "quota exceeded", by number or, from native code, by text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(os.strerror(number) in str(error) for number in FULL)


def explain_full_disk(error: BaseException, folder: Path) -> str:
    """Which disk is full, how large it is, and what to do about it."""
    filename = getattr(error, "filename", None)
    place = _existing(Path(filename) if isinstance(filename, str) else folder)
    usage = shutil.disk_usage(place)
    left, total = usage.free / MEGABYTE, usage.total / MEGABYTE
    return (
        f"the disk at {_mount_point(place)} is full ({left:.1f} MB of {total:.0f} MB left), met while writing under "
        f"{place}. Free space there ('alignflow artifacts gc --dry-run' names what can go), or move the root to "
        "a larger disk. Nothing half-written counts: the same command then goes on from the last complete checkpoint"
    )


def _existing(path: Path) -> Path:
    """The path itself, or its nearest folder that exists."""
    return next(place for place in (path, *path.resolve().parents) if place.exists())


def _mount_point(path: Path) -> Path:
    return next(place for place in (path.resolve(), *path.resolve().parents) if place.is_mount())
