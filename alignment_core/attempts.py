"""Who computes a stage, among hosts: a number per attempt, and a beat while it lives.

    URL/.attempts/<stage>-<key>/00000007.json   who took number 7; an exclusive create, so that nobody else has it
    URL/.attempts/<stage>-<key>/00000007.beat   rewritten by attempt 7 while it lives; its last word is "ended"

The highest number holds the stage. Before it uploads or publishes anything an attempt looks whether its own is still
the highest, and raises `Superseded` if not. A later attempt takes the next number once the highest has ended, or once
it has seen that one's beat stand still for the whole lease.

No clock is compared between hosts. Stillness is what the observer itself saw: the sum of the times between looks that
succeeded, none counted as more than a few looks' worth. So an observer that slept, was stopped, or could not reach
the store starts no takeover because of that, and a store that was away for all takes nobody's stage.

What a look cannot rule out, that an attempt is stopped between looking and writing, does no harm either: each
publication and each attempt's checkpoints have folders of their own, and of two manifests the first stays.
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from alignment_core.journal import boot_identity
from alignment_core.records import Record
from alignment_core.remote import RemoteFolder, StoreError, patiently
from alignment_core.sharing import STORE_PATIENCE, lease_seconds, setting

FOLDER = ".attempts"
PLACE = ".place"
"""File of a root's store folder that tells it from every other that ever was there."""
BEATS_PER_LEASE = 6
LOOKS_PER_LEASE = 12
LONGEST_LOOK = 5.0
"""Seconds between two looks of whoever waits, at most: how late the end of an attempt is noticed."""
ANSWER_SECONDS = 2.0
"""Longest that a step of a stage waits for the answer whether the stage is still its own."""
OVERSLEPT = time.CLOCK_BOOTTIME if hasattr(time, "CLOCK_BOOTTIME") else time.CLOCK_MONOTONIC
"""A clock that goes on while the host sleeps."""


class Superseded(StoreError):
    """Another attempt holds the stage now. This one was silent for too long; it writes nothing more."""


class Holder(Record):
    """Who took a number."""

    number: int
    host: str
    pid: int
    place: str
    """Identity of the root: its host's boot, and the folder. Within it flock tells the dead from the living."""
    token: str
    """Unique, so that two who write the same are told apart."""
    time: float
    """Unix time, by its own clock."""
    label: str = ""
    """Which of a study's stages it is, for people."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (attempt {self.number})"


class Beat(Record):
    """The last sign of life of an attempt."""

    count: int
    state: Literal["working", "ended"]
    step: int = 0
    """How far it has come, where the stage has steps."""
    time: float = Field(default=0.0)
    """Unix time, by its own clock: for people."""


class Attempt:
    """A number of one's own, and the thread that beats for it."""

    def __init__(self, remote: RemoteFolder, name: str, number: int, lease: float) -> None:
        self.remote, self.name, self.number = remote, name, number
        self.step = 0
        """Told with the next beat."""
        self._lease, self._period = lease, lease / BEATS_PER_LEASE
        self._count = 0
        self._highest = number
        self._confirmed = self._asked = time.clock_gettime(OVERSLEPT)
        self._stopping = False
        self._wake, self._answered = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat_until_stopped, name=f"beat-{name[:24]}", daemon=True)

    def check(self) -> None:
        """Raise Superseded if the stage is another attempt's now; StoreError if that cannot be told."""
        at = time.clock_gettime(OVERSLEPT)
        self._highest = max(self._highest, *numbers(self.remote, self.name), self.number)
        self._raise_if_superseded()
        self._confirmed = at

    def at_boundary(self) -> None:
        """Raise Superseded if it is known that the stage is another attempt's; cheap, for every step.

        After a silence longer than the lease (the process was stopped, or its host slept) it asks, and waits shortly
        for the answer: what is recorded until then would be recorded twice.
        """
        self._raise_if_superseded()
        now = time.clock_gettime(OVERSLEPT)
        if now - self._confirmed > self._lease and now - self._asked > self._period:
            self._asked = now
            self._answered.clear()
            self._wake.set()
            self._answered.wait(ANSWER_SECONDS)
            self._raise_if_superseded()

    def _raise_if_superseded(self) -> None:
        if self._highest > self.number:
            stage, _, key = self.name.rpartition("-")
            raise Superseded(
                f"attempt {self._highest} computes {stage}/{key[:12]} now: attempt {self.number}, this one, was silent "
                "for longer than the lease (it was stopped, its host slept, or it could not reach the shared store). "
                "It stops without having harmed anything; the same command waits for the other and takes its result"
            )

    def begin(self) -> None:
        """Start to beat."""
        self._thread.start()

    def end(self) -> None:
        """Say that this attempt has ended, so that nobody waits for its lease to run out."""
        self._stopping = True
        self._wake.set()
        self._thread.join(ANSWER_SECONDS)
        if self._highest == self.number:
            with suppress(StoreError):  # then the lease runs out
                self._write_beat("ended")

    def _beat_until_stopped(self) -> None:
        while not self._stopping:
            with suppress(StoreError):  # Superseded is for the stage's own thread, an outage passes or does not
                self._write_beat("working")
                self.check()
            self._answered.set()
            self._wake.wait(self._period)
            self._wake.clear()

    def _write_beat(self, state: Literal["working", "ended"]) -> None:
        self._count += 1
        beat = Beat(count=self._count, state=state, step=self.step, time=time.time())
        # A beat that waits for a slow disk would look like none.
        self.remote.write(_beat_name(self.name, self.number), beat.model_dump_json().encode(), durable=False)


@contextmanager
def attempting(
    remote: RemoteFolder,
    name: str,
    root: Path,
    say: Callable[[str], None],
    lease: float | None = None,
    label: str = "",
) -> Iterator[Attempt]:
    """Hold the stage `name` (<stage>-<key>) among all hosts that share a store; wait while another attempt lives.

    say: told who holds it, and when it is taken over. lease: seconds, default ALIGNFLOW_LEASE_SECONDS. The caller
    holds the stage's flock in `root`, its store folder, so that an earlier attempt from there is over for certain.
    Raises StoreUnreachable if the store cannot be reached for ALIGNFLOW_STORE_PATIENCE seconds.
    """
    seconds = lease_seconds() if lease is None else lease
    number = _take_number(remote, name, place_of(root), say, seconds, label)
    attempt = Attempt(remote, name, number, seconds)
    attempt.begin()
    try:
        yield attempt
    finally:
        attempt.end()


def _take_number(
    remote: RemoteFolder, name: str, place: str, say: Callable[[str], None], lease: float, label: str
) -> int:
    patience = setting(STORE_PATIENCE)
    while True:
        highest = patiently(lambda: max(numbers(remote, name), default=0), patience)
        if highest and not _wait_for_end(remote, name, highest, place, say, lease):
            continue
        if patiently(partial(_claim, remote, name, highest + 1, place, label), patience):
            _remove_older(remote, name, highest)
            return highest + 1


def _claim(remote: RemoteFolder, name: str, number: int, place: str, label: str = "") -> bool:
    """Whether a number is ours now."""
    holder = Holder(
        number=number,
        host=socket.gethostname(),
        pid=os.getpid(),
        place=place,
        token=uuid.uuid4().hex,
        time=time.time(),
        label=label,
    )
    return remote.create(_holder_name(name, number), holder.model_dump_json().encode())


def _wait_for_end(
    remote: RemoteFolder, name: str, number: int, place: str, say: Callable[[str], None], lease: float
) -> bool:
    """Wait while an attempt lives: True once it has ended or stood still, False if there is a later one."""
    holder = patiently(lambda: read_holder(remote, name, number), setting(STORE_PATIENCE))
    if holder is not None and holder.place == place:
        return True  # the flock is ours, so its process is dead
    told, stillness = False, Stillness(lease)
    pause = min(lease / LOOKS_PER_LEASE, LONGEST_LOOK)
    while True:
        with suppress(StoreError):
            if max(numbers(remote, name), default=0) > number:
                return False
            beat = _read(remote, _beat_name(name, number))
            if _has_ended(beat):
                return True
            if stillness.seen(beat, time.monotonic()):
                say(f"takes over from {holder or f'attempt {number}'}, which was silent for {lease:g} s")
                return True
        if not told:
            say(f"waits for {holder or f'attempt {number}'}, which computes the same stage")
            told = True
        time.sleep(pause)


class Stillness:
    """How long an observer has seen one and the same beat."""

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._longest_gap = 3 * min(lease / LOOKS_PER_LEASE, LONGEST_LOOK)
        """What one look can add: a host that slept, or had no network, did not look on."""
        self._beat: bytes | None = None
        self._at: float | None = None
        self._still = 0.0

    def seen(self, beat: bytes, now: float) -> bool:
        """Note a look at `now` (monotonic seconds) that succeeded; whether the beat has stood still for the lease."""
        if self._at is None or beat != self._beat:
            self._still = 0.0
        else:
            self._still += min(max(now - self._at, 0.0), self._longest_gap)
        self._beat, self._at = beat, now
        return self._still >= self._lease


class UnderWay(Record):
    """A stage that some host computes, or computed when it died."""

    name: str
    """<stage>-<key>."""
    holder: Holder
    beat: Beat | None


def under_way(remote: RemoteFolder) -> Iterator[UnderWay]:
    """The latest attempt at each stage, but those that have ended. Whether it lives tells the age of its beat, by the
    clock of its host, and the change of `beat.count` between two calls for certain."""
    for name in remote.children(FOLDER):
        highest = max(numbers(remote, name), default=0)
        holder = read_holder(remote, name, highest) if highest else None
        content = _read(remote, _beat_name(name, highest))
        if holder is not None and not _has_ended(content):
            beat = None
            with suppress(ValidationError):
                beat = Beat.model_validate_json(content)
            yield UnderWay(name=name, holder=holder, beat=beat)


def numbers(remote: RemoteFolder, name: str) -> list[int]:
    """The numbers that were taken for a stage; older ones may have been removed."""
    found = (re.fullmatch(r"(\d{8})\.json", child) for child in remote.children(f"{FOLDER}/{name}"))
    return [int(match[1]) for match in found if match]


def read_holder(remote: RemoteFolder, name: str, number: int) -> Holder | None:
    """Who took a number; None if that is not, or not yet, to be read."""
    with suppress(ValidationError):
        return Holder.model_validate_json(_read(remote, _holder_name(name, number)))
    return None


def place_of(root: Path) -> str:
    """Identity of a root's store folder among all hosts; unique at each call where the boot is not known.

    Its inode tells it from a copy, the token in it from a folder that was deleted and whose inode it was given.
    """
    stat, boot = root.stat(), boot_identity()
    return f"{boot}:{stat.st_dev}:{stat.st_ino}:{_token(root / PLACE)}" if boot else uuid.uuid4().hex


def _token(path: Path) -> str:
    """What a file of a root holds, written by whoever asks first."""
    with suppress(FileExistsError), path.open("x") as file:
        file.write(uuid.uuid4().hex)
    return path.read_text()


def _remove_older(remote: RemoteFolder, name: str, before: int) -> None:
    """Forget all but the latest two attempts: the highest number alone counts."""
    with suppress(StoreError):
        for number in numbers(remote, name):
            if number < before:
                remote.remove(_holder_name(name, number))
                remote.remove(_beat_name(name, number))


def _read(remote: RemoteFolder, name: str) -> bytes:
    """A small file; empty if it is not there yet."""
    try:
        return remote.read(name)
    except FileNotFoundError:
        return b""


def _has_ended(beat: bytes) -> bool:
    try:
        return bool(json.loads(beat)["state"] == "ended")
    except (ValueError, KeyError, TypeError):
        return False


def _holder_name(name: str, number: int) -> str:
    return f"{FOLDER}/{name}/{number:08d}.json"


def _beat_name(name: str, number: int) -> str:
    return f"{FOLDER}/{name}/{number:08d}.beat"
