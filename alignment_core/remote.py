"""One folder on a file system that fsspec knows: a POSIX path like any other, s3://, gs:// and so on.

Every error of a backend becomes one of ours: `FileNotFoundError` for a file that is not there, `StoreUnreachable`
for what may pass, `StoreRefused` for what a person has to settle. Nothing is cached: another host may have written
just now.

Writing is whole or not at all, and `create` succeeds for one caller only. An object store promises both; on POSIX a
temporary name is renamed, or linked, which fails where the name is taken. Where a file system has no exclusive
create, two hosts could both believe to hold a stage, so such a store is refused.
"""

import errno
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from alignment_core.durable import sync_file, sync_folder
from alignment_core.redaction import redact

T = TypeVar("T")

EXCLUSIVE = {"file", "local", "s3", "s3a", "gs", "gcs", "memory"}
"""Protocols whose `pipe_file(..., mode="create")` is one atomic step."""
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
CHUNK = 2**22
"""Bytes read at a time."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds between two tries to reach a store."""


class StoreError(OSError):
    """The shared store cannot be used; the message has the cause and the remedy."""


class StoreUnreachable(StoreError):
    """It did not answer, or not sensibly; it may do so later."""


class StoreRefused(StoreError):
    """It answered, and refused: credentials, rights, or something it cannot do."""


class RemoteFolder:
    """Files under one URL, by relative names with forward slashes."""

    def __init__(self, url: str) -> None:
        """Connects lazily, but for a POSIX folder, which is made if it is absent."""
        self.url = redact(url)
        self._fs, self._base = _connect(url)
        self._is_posix = "file" in _protocols(self._fs)
        self._can_create = False
        if self._is_posix:
            with self._told("make its folder"):
                os.makedirs(self._base, exist_ok=True)
            self._base = os.path.realpath(self._base)

    @property
    def identity(self) -> str:
        """Short name of this place, the same for everyone who sees it under the same URL."""
        return hashlib.sha256(f"{self.url}:{self._base}".encode()).hexdigest()[:12]

    def read(self, name: str) -> bytes:
        """A file's bytes; FileNotFoundError if it is not there."""
        path = self._inside(name)
        with self._told(f"read {name}"):
            content: bytes = self._fs.cat_file(path)
            return content

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's bytes, piece by piece."""
        path = self._inside(name)
        with self._told(f"read {name}"), self._fs.open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def write(self, name: str, content: bytes, durable: bool = True) -> None:
        """Replace a file as a whole; one that a power cut may take need not wait for a disk."""
        path = self._path(name)
        with self._told(f"write {name}", writing=True):
            if self._is_posix:
                with self._staged(path, durable) as staged:
                    Path(staged).write_bytes(content)
                    if durable:
                        sync_file(Path(staged))
                    os.replace(staged, path)
            else:
                self._fs.pipe_file(path, content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that must not be there; whether it is ours now. Of several callers one succeeds.

        Raises StoreRefused where the file system cannot promise that.
        """
        self._require_exclusive_create()
        return self._create(name, content)

    def _create(self, name: str, content: bytes) -> bool:
        path = self._path(name)
        with self._told(f"create {name}", writing=True):
            try:
                if self._is_posix:
                    with self._staged(path) as staged:
                        Path(staged).write_bytes(content)
                        sync_file(Path(staged))
                        os.link(staged, path)
                else:
                    self._fs.pipe_file(path, content, mode="create")
            except FileExistsError:
                # A client that had no answer tries again by itself, and then meets its own file.
                return bool(self._fs.cat_file(path) == content)
        return True

    def put(self, source: Path, name: str) -> None:
        """Copy a local file there."""
        path = self._path(name)
        with self._told(f"write {name}", writing=True):
            if self._is_posix:
                with self._staged(path) as staged:
                    self._fs.put_file(str(source), staged)
                    sync_file(Path(staged))
                    os.replace(staged, path)
            else:
                self._fs.put_file(str(source), path)

    def get(self, name: str, target: Path) -> None:
        """Copy a file here."""
        path = self._inside(name)
        with self._told(f"read {name}"):
            self._fs.get_file(path, str(target))

    def sizes(self, folder: str) -> dict[str, int]:
        """Every file below a folder, by its name within it, with its size; nothing if there is no such folder.

        Symbolic links, and files whose names leave the folder, count as absent.
        """
        return {name: int(info["size"]) for name, info in self._infos(folder).items()}

    def ages(self, folder: str) -> dict[str, float]:
        """The same files with the Unix time of their last change; 0 where the file system does not tell."""
        return {name: _changed(info) for name, info in self._infos(folder).items()}

    def _infos(self, folder: str) -> dict[str, dict[str, Any]]:
        base = self._inside(folder)
        try:
            with self._told(f"list {folder}"):
                found = self._fs.find(base, detail=True)
        except FileNotFoundError:
            return {}
        prefix = f"{base}/"
        return {
            path.removeprefix(prefix): info
            for path, info in found.items()
            if path.startswith(prefix) and info["type"] == "file" and not info.get("islink") and not _is_staged(path)
        }

    def children(self, folder: str) -> list[str]:
        """Names of the files and folders right below a folder, sorted; nothing if there is no such folder."""
        base = self._inside(folder)
        try:
            with self._told(f"list {folder or 'it'}"):
                found = self._fs.ls(base, detail=False)
        except FileNotFoundError:
            return []
        names = {path.rstrip("/").rpartition("/")[2] for path in found if path.rstrip("/") != base}
        return sorted(name for name in names if name and not _is_staged(name))

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all below it; nothing happens if it is not there."""
        path = self._inside(name)
        with self._told(f"remove {name}"), suppress(FileNotFoundError):
            self._fs.rm(path, recursive=True)

    def _path(self, name: str) -> str:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\0" in name:
            raise ValueError(f"{name!r} lies outside {self.url}: nothing was read or written")
        return f"{self._base}/{name}" if name else self._base

    def _inside(self, name: str) -> str:
        """The path of what is to be read; StoreRefused if a symbolic link leads away from it."""
        path = self._path(name)
        if self._is_posix and os.path.realpath(path) != path:
            raise StoreRefused(f"{path} is, or lies behind, a symbolic link: replace it by what it points to")
        return path

    @contextmanager
    def _staged(self, final: str, durable: bool = True) -> Iterator[str]:
        """A name of one's own beside the final one, and the folder for it; gone after the block."""
        path, folder = Path(final), Path(self._base)
        # Never the base itself: without it the mount is gone, and the folder that it covered is not to be filled.
        for part in path.parent.relative_to(folder).parts:
            folder /= part
            with suppress(FileExistsError):
                folder.mkdir()
        staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
        try:
            yield str(staged)
            if durable:
                sync_folder(path.parent)
        finally:
            staged.unlink(missing_ok=True)

    def _require_exclusive_create(self) -> None:
        """Ask once whether a second create of the same name fails; services that only speak S3 may ignore the wish."""
        if self._can_create:
            return
        probe = f".attempts/.probe-{uuid.uuid4().hex}"
        known = EXCLUSIVE & _protocols(self._fs)
        if not known or not self._create(probe, b"1") or self._create(probe, b"2"):
            if known:
                self.remove(probe)
            raise StoreRefused(
                f"{self.url} has no exclusive create (S3: a put with If-None-Match), without which two hosts could "
                "compute one stage at a time: use a POSIX folder, S3, GCS or a service that honours conditional "
                "puts, or unset ALIGNFLOW_STORE"
            )
        self.remove(probe)
        self._can_create = True

    @contextmanager
    def _told(self, action: str, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            if writing or (self._is_posix and not os.path.isdir(self._base)):
                raise StoreUnreachable(
                    f"the shared store {self.url} is not there (met while trying to {action}): make its bucket or "
                    "folder, or mount it, and check ALIGNFLOW_STORE"
                ) from error
            raise
        except PermissionError as error:
            raise StoreRefused(
                f"the shared store {self.url} refuses to {action}: {error}. Check this host's credentials for it, and "
                "their rights to read, write, list and delete"
            ) from error
        except Exception as error:  # every backend, and the network below it, has exceptions of its own
            if not writing and getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise  # the disk here is full, onto which a file is read
            raise StoreUnreachable(
                f"the shared store {self.url} cannot be reached (tried to {action}: {_brief(error)}). Check the "
                "network, ALIGNFLOW_STORE and this host's credentials"
            ) from error


def patiently(action: Callable[[], T], patience: float, on_trouble: Callable[[str], None] | None = None) -> T:
    """Try again, ever more rarely, while the store cannot be reached; the last StoreUnreachable after `patience` s.

    on_trouble: told once, with the first error.
    """
    deadline, pause = time.monotonic() + patience, FIRST_PAUSE
    while True:
        try:
            return action()
        except StoreUnreachable as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            if on_trouble is not None:
                on_trouble(str(error))
                on_trouble = None
            time.sleep(min(pause, left))
            pause = min(pause * 2, LONGEST_PAUSE)


def _connect(url: str) -> tuple[Any, str]:
    """File system and path; StoreRefused with the remedy if the protocol is unknown or its package is missing."""
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0] if "://" in url else "file"
    try:
        fs, path = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        remedy = f"pip install {PACKAGES[protocol]}" if protocol in PACKAGES else _brief(error)
        raise StoreRefused(f"ALIGNFLOW_STORE={redact(url)} needs a package that is not installed: {remedy}") from error
    except OSError as error:  # some, such as ftp, connect at once
        raise StoreUnreachable(
            f"the shared store {redact(url)} cannot be reached ({_brief(error)}). Check the network and ALIGNFLOW_STORE"
        ) from error
    except ValueError as error:
        raise StoreRefused(
            f"ALIGNFLOW_STORE={redact(url)} is no place that fsspec knows ({_brief(error)}): give a "
            "folder, or a URL such as s3://bucket/folder"
        ) from error
    return fs, str(path).rstrip("/")


def _is_staged(path: str) -> bool:
    """Whether a file is one that a kill left half written."""
    return path.endswith(".part") and path.rpartition("/")[2].startswith(".")


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def _changed(info: dict[str, Any]) -> float:
    """Unix time of a file's last change: a number on POSIX, a date on object stores."""
    value = info.get("mtime", info.get("LastModified", 0.0))
    return float(value.timestamp() if hasattr(value, "timestamp") else value)


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
