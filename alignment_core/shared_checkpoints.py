"""Checkpoints of a stage under way in the shared store, so that another host goes on where a dead one stopped.

    URL/.work/<stage>-<key>/<attempt>-<step>/checkpoint/…         the checkpoint's files
    URL/.work/<stage>-<key>/<attempt>-<step>/record/events.jsonl  the part of the record that it covers
    URL/.work/<stage>-<key>/<attempt>-<step>/shared.json          sizes and sha256, last: without it there is nothing

A thread uploads; the stage only makes hard links for it. While one upload runs no other is prepared, so that a slow
network skips checkpoints instead of piling them up; one that fails is tried again until there is a newer one.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from alignment_core.attempts import Attempt, Superseded
from alignment_core.checkpoint_folders import read_marker
from alignment_core.durable import sync_file, sync_folder
from alignment_core.events import EVENTS
from alignment_core.manifest import RECORD, file_sha256
from alignment_core.records import Record
from alignment_core.remote import FIRST_PAUSE, LONGEST_PAUSE, RemoteFolder, StoreError
from alignment_core.sharing import STOP_SECONDS, UPLOAD_SECONDS, setting

FOLDER = ".work"
MARKER = "shared.json"
CHECKPOINT = "checkpoint"


class SharedFile(Record):
    """One file of a checkpoint in the shared store."""

    size: int
    sha256: str


class SharedCheckpoint(Record):
    """The marker."""

    attempt: int
    step: int
    accuracy: float | None
    """Of the last validation before it, if there was one."""
    files: dict[str, SharedFile]

    def folder(self, name: str) -> str:
        """Where it lies, for the stage `name`."""
        return f"{FOLDER}/{name}/{self.attempt:08d}-{self.step:08d}"


class Snapshot(NamedTuple):
    """A checkpoint that waits for its upload: links to its files, which the stage may remove meanwhile."""

    folder: Path
    step: int
    accuracy: float | None


class CheckpointUploader:
    """Uploads the newest checkpoint of one attempt, again and again."""

    def __init__(self, remote: RemoteFolder, attempt: Attempt, scratch: Path, period: float | None = None) -> None:
        """scratch: a folder of its own on the disk of the checkpoints. period: seconds between two uploads."""
        self._remote, self._attempt, self._scratch = remote, attempt, scratch
        self._period = setting(UPLOAD_SECONDS) if period is None else period
        self._due_at = time.monotonic() + self._period
        self._state = threading.Condition()
        self._waiting: Snapshot | None = None
        self._busy = False
        self._ended = False
        self._lines: list[str] = []
        self._uploaded: list[SharedCheckpoint] = []
        shutil.rmtree(scratch, ignore_errors=True)
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self._thread.start()

    def offer(self, checkpoint: Path, events: Path, urgent: bool = False) -> None:
        """Take a checkpoint that was just completed, if the time has come and no upload runs; urgent: in any case."""
        with self._state:
            if not urgent and (self._busy or time.monotonic() < self._due_at):
                return
            self._due_at = time.monotonic() + self._period
            if self._waiting is not None:
                shutil.rmtree(self._waiting.folder, ignore_errors=True)
            self._waiting = _take_snapshot(checkpoint, events, self._scratch)
            self._state.notify_all()

    def flush(self, seconds: float | None = None) -> bool:
        """Wait for what was taken to be uploaded, at most so long (default: ALIGNFLOW_STOP_SECONDS); whether it is."""
        with self._state:
            return self._state.wait_for(
                lambda: self._ended or (self._waiting is None and not self._busy),
                setting(STOP_SECONDS) if seconds is None else seconds,
            )

    def stop(self, seconds: float) -> None:
        """Upload nothing more; wait for the file that is on its way, at most so long."""
        with self._state:
            self._ended = True
            self._state.notify_all()
        self._thread.join(seconds)

    def lines(self) -> list[str]:
        """What there is to tell since the last call; the stage's own thread says it."""
        with self._state:
            lines, self._lines = self._lines, []
        return lines

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while (snapshot := self._next()) is not None:
            try:
                self._upload(snapshot)
            except (Superseded, FileNotFoundError):
                return self._give_up()  # the stage hears of the first at its next step; the second: its folder is gone
            except StoreError as error:
                if pause == FIRST_PAUSE:
                    self._tell(f"{error}: the stage goes on, its checkpoint is uploaded later")
                self._put_back(snapshot, pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                if pause > FIRST_PAUSE:
                    self._tell(f"the checkpoint of step {snapshot.step} is in the shared store now")
                pause = FIRST_PAUSE
                self._done(snapshot)

    def _next(self) -> Snapshot | None:
        with self._state:
            self._state.wait_for(lambda: self._ended or self._waiting is not None)
            if self._ended:
                return None
            snapshot, self._waiting, self._busy = self._waiting, None, True
            return snapshot

    def _put_back(self, snapshot: Snapshot, pause: float) -> None:
        """After a failure: wait, and try again unless there is a newer one by then, which may now be taken."""
        with self._state:
            self._busy = False
            if self._waiting is None:
                self._waiting = snapshot
            else:
                shutil.rmtree(snapshot.folder, ignore_errors=True)
            self._state.wait_for(lambda: self._ended, pause)

    def _done(self, snapshot: Snapshot) -> None:
        shutil.rmtree(snapshot.folder, ignore_errors=True)
        with self._state:
            self._busy = False
            self._state.notify_all()

    def _give_up(self) -> None:
        with self._state:
            self._busy, self._ended = False, True
            self._state.notify_all()

    def _tell(self, line: str) -> None:
        with self._state:
            self._lines.append(line)

    def _upload(self, snapshot: Snapshot) -> None:
        """Files, then the marker, each asked for first; then what it makes superfluous goes."""
        files = {
            path.relative_to(snapshot.folder).as_posix(): SharedFile(size=path.stat().st_size, sha256=file_sha256(path))
            for path in sorted(snapshot.folder.rglob("*"))
            if path.is_file()
        }
        if not files:
            raise FileNotFoundError(snapshot.folder)
        marker = SharedCheckpoint(
            attempt=self._attempt.number, step=snapshot.step, accuracy=snapshot.accuracy, files=files
        )
        place = marker.folder(self._attempt.name)
        for name in files:
            if self._ended:
                raise FileNotFoundError("the stage has ended")
            self._attempt.check()
            self._remote.put(snapshot.folder / name, f"{place}/{name}")
        self._attempt.check()
        self._remote.write(f"{place}/{MARKER}", marker.model_dump_json().encode())
        self._remove_superfluous(marker)

    def _remove_superfluous(self, newest: SharedCheckpoint) -> None:
        """Keep the newest, and the best by accuracy, of those that are there."""
        name = self._attempt.name
        self._uploaded = [one for one in self._uploaded if one.step != newest.step] + [newest]
        scored = [one for one in self._uploaded if one.accuracy is not None]
        best = max(scored, key=lambda one: (one.accuracy or 0.0, one.step), default=newest)
        self._uploaded = [one for one in self._uploaded if one in (newest, best)]
        kept = {one.folder(name).rpartition("/")[2] for one in self._uploaded}
        for folder in self._remote.children(f"{FOLDER}/{name}"):
            attempt, _, step = folder.partition("-")
            if folder not in kept and attempt.isdigit() and step.isdigit():
                older = int(attempt) == newest.attempt or int(step) <= newest.step
                if older and int(attempt) <= newest.attempt:
                    self._attempt.check()
                    self._remote.remove(f"{FOLDER}/{name}/{folder}")


def fetch_further(
    remote: RemoteFolder, name: str, work: Path, local_step: int, say: Callable[[str], None] = lambda _: None
) -> int | None:
    """Bring the furthest checkpoint of the shared store into a stage's work folder, if it is further than `local_step`.

    With it comes the record that it covers; the checkpoints that were in the folder go, for their record is another.
    Returns its step, None if nothing was brought. One that is damaged is told of, and the next is tried.
    """
    for found in sorted(shared_checkpoints(remote, name), key=lambda one: (one.step, one.attempt), reverse=True):
        if found.step <= local_step:
            return None
        staging = work / "fetched"
        flaw = _download(remote, name, found, staging)
        if not flaw:
            _install(staging, work, found.step)
            return found.step
        say(f"the uploaded checkpoint of step {found.step} is damaged: {flaw}")
    return None


def shared_checkpoints(remote: RemoteFolder, name: str) -> list[SharedCheckpoint]:
    """The complete checkpoints of a stage in the shared store, of all attempts."""
    found = []
    for folder in remote.children(f"{FOLDER}/{name}"):
        with suppress(FileNotFoundError, ValidationError):
            one = SharedCheckpoint.model_validate_json(remote.read(f"{FOLDER}/{name}/{folder}/{MARKER}"))
            if one.folder(name).endswith(f"/{folder}"):
                found.append(one)
    return found


def remove_shared_work(remote: RemoteFolder, name: str) -> None:
    """Drop the checkpoints of a stage that is published; what cannot be dropped now is garbage, and harms nobody."""
    with suppress(StoreError):
        remote.remove(f"{FOLDER}/{name}")


def _download(remote: RemoteFolder, name: str, found: SharedCheckpoint, staging: Path) -> str:
    """Files into `staging`, verified by sha256; what is wrong with them, in words."""
    shutil.rmtree(staging, ignore_errors=True)
    for file, entry in found.files.items():
        if not _is_plain(file):
            return f"it lists {file!r}, which no checkpoint has"
        target = staging / file
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            remote.get(f"{found.folder(name)}/{file}", target)
        except FileNotFoundError:
            return f"{file} is missing"
        if target.stat().st_size != entry.size or file_sha256(target) != entry.sha256:
            return f"{file} is not what was uploaded"
        sync_file(target)
    return "" if (staging / CHECKPOINT).is_dir() and (staging / RECORD / EVENTS).is_file() else "it is not whole"


def _is_plain(name: str) -> bool:
    """CHECKPOINT/… without detours, or the record."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and "\0" not in part for part in parts)
    return plain and (name == f"{RECORD}/{EVENTS}" or (parts[0] == CHECKPOINT and len(parts) > 1))


def _install(staging: Path, work: Path, step: int) -> None:
    """Record and checkpoint take the places of those that were there; cut off anywhere, the next attempt fetches."""
    checkpoints, record = work / "checkpoints", work / "output" / RECORD
    shutil.rmtree(checkpoints, ignore_errors=True)
    checkpoints.mkdir(parents=True)
    record.mkdir(parents=True, exist_ok=True)
    os.replace(staging / RECORD / EVENTS, record / EVENTS)
    sync_folder(record)
    (staging / CHECKPOINT).rename(checkpoints / f"{step:08d}")
    sync_folder(checkpoints)
    shutil.rmtree(staging)


def _take_snapshot(checkpoint: Path, events: Path, scratch: Path) -> Snapshot:
    """Links to the files of a checkpoint, and a copy of the record that it covers."""
    marker = read_marker(checkpoint)
    folder = scratch / f"{time.monotonic_ns()}"
    for path in checkpoint.rglob("*"):
        if path.is_file():
            target = folder / CHECKPOINT / path.relative_to(checkpoint)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:  # a disk without links
                shutil.copyfile(path, target)
    (folder / RECORD).mkdir()
    with events.open("rb") as source, (folder / RECORD / EVENTS).open("wb") as copy:
        copy.write(source.read(marker["event_bytes"]))
    validation = marker.get("validation")
    return Snapshot(folder, marker["step"], float(validation["accuracy"]) if validation else None)
