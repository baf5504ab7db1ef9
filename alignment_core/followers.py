"""Stages that train in several processes, one GPU each: whoever runs the stage starts the others and leads them.

    python -m alignment_core.followers

is one of the others; it reads what to do as a line of JSON from stdin and ends when that closes, so that no kill of
the leader leaves it behind. The leader alone holds the lock, writes the record and the checkpoints, and publishes.
"""

import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Any, cast

import torch

from alignment_core.failures import OWN, TOLD, MemberError, torch_told
from alignment_core.fingerprint import require_unedited
from alignment_core.interruption import SIGNALS
from alignment_core.operation import stage_environment
from alignment_core.processes import FollowerRun, join_processes, leave_processes
from alignment_core.records import Failure, Record
from alignment_core.stage_run import StageRun

ECHO_SECONDS = 1.0
"""Longest wait for the death of a process whose peers felt it."""
LINES_TOLD = 20
"""Last lines of a process that failed, for the error message."""


class Following(Record):
    """What a process that follows needs of the stage."""

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, Path]
    folder: Path
    """Work folder, which holds the checkpoint to go on from."""
    code: dict[str, str]
    """Definitions that the stage was asked for with, and their digests."""


@contextmanager
def led_together(count: int, task: Following) -> Iterator[None]:
    """Be the first of `count` processes that run a stage, for the length of the block.

    Raises ValueError if this host has fewer GPUs. If another process failed: what it did, by its kind
    (`alignment_core.failures`); MemberError if it was killed, RuntimeError with its last words for a bug.
    """
    _require_devices(count)
    port = _free_port()
    places = [_place(rank, count, port) for rank in range(count)]
    with ExitStack() as companions:
        followers = [companions.enter_context(_following(place, task)) for place in places[1:]]
        try:
            for follower in followers:
                follower.await_ready()
            with _environment(places[0]), _joined():
                yield
        except OWN:
            raise  # its own, or one that all processes met
        except Exception as error:
            _explain(error, followers)
            raise


def _explain(error: Exception, followers: "list[_Follower]") -> None:
    """Raise what another process died of, from the leader's `error`, if that only echoes its death.

    gloo tells the leader at once that a peer has gone; NCCL's watchdog takes ten minutes, and ends the leader. Of
    several that died, the one is told that did not itself lose a peer.
    """
    told = [failure for follower in followers if (failure := follower.failure())]
    if told:
        raise next((failure for failure in told if "losed by peer" not in str(failure)), told[0]) from error


@contextmanager
def _joined() -> Iterator[None]:
    threads = torch.get_num_threads()
    join_processes()  # accelerate may give this process its share of the cores
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        leave_processes()


@contextmanager
def _following(place: dict[str, str], task: Following) -> Iterator["_Follower"]:
    """One of the other processes, for the length of the block. What it still does at its end is of no use to anyone."""
    name = f"process {place['RANK']} of {place['WORLD_SIZE']} of this stage"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as words:
        process = subprocess.Popen(
            [sys.executable, "-m", "alignment_core.followers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            env=stage_environment() | place,
            start_new_session=True,  # Ctrl-C is the leader's to answer: it saves first
        )
        with process:
            follower = _Follower(name, process, words)
            try:
                follower.tell(task)
                yield follower
            finally:
                process.kill()


@dataclass(frozen=True)
class _Follower:
    """One of the other processes, as its leader sees it."""

    name: str
    process: "subprocess.Popen[str]"
    words: IO[str]

    def tell(self, task: Following) -> None:
        """Give it the stage."""
        with suppress(BrokenPipeError):  # it has ended: `await_ready` says so
            print(task.model_dump_json(), file=self.process.stdin, flush=True)

    def await_ready(self) -> None:
        """Until it is about to join; raises what it tells, else ChildProcessError, if it ends before."""
        line = self._line()
        if line != READY:
            raise self._told(line) or ChildProcessError(f"{self.name} did not start")

    def failure(self) -> Exception | None:
        """What to raise of its death; None if it lives, ended well, or `await_ready` has raised it."""
        try:
            code = self.process.wait(ECHO_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        if code in (0, ORPHANED):
            return None
        if code == FAILED:
            return self._told(self._line())
        self.words.seek(0)
        text = f"{self.name} ended with code {code}: {''.join(self.words.readlines()[-LINES_TOLD:]).strip()}"
        return MemberError(text) if code < 0 else RuntimeError(text)

    def _line(self) -> str:
        return cast(IO[str], self.process.stdout).readline().strip()

    def _told(self, line: str) -> Exception | None:
        return Failure.model_validate_json(line).error(f"{self.name}: ") if line else None


def _require_devices(count: int) -> None:
    if torch.cuda.is_available() and torch.cuda.device_count() < count:
        raise ValueError(
            f"model.processes is {count}, and {torch.cuda.device_count()} GPU(s) are visible here: lower it, take a "
            "host with more, or show more of them in CUDA_VISIBLE_DEVICES"
        )


def _place(rank: int, count: int, port: int) -> dict[str, str]:
    """The environment by which torch.distributed and accelerate know a process."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return where | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def _environment(place: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in place}
    os.environ.update(place)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


READY = "ready"
ORPHANED = 128 + signal.SIGHUP
"""Exit code of a process whose leader has gone."""
FAILED = 3
"""Exit code of one that has told why: a `Failure` as a line of JSON on stdout."""


def follow(task: Following, leader: IO[str]) -> None:
    """Run the stage beside its leader, who is told when it is ready to join, and write nothing."""
    module = importlib.import_module(f"alignment_core.stages.{task.stage}")
    require_unedited(task.code)
    print(READY, file=leader, flush=True)
    join_processes()
    with tempfile.TemporaryDirectory(prefix="alignflow-") as scratch:
        run = FollowerRun(StageRun(task.folder))
        with torch_told():
            module.run(module.CONFIG.model_validate(task.settings), task.inputs, Path(scratch), run)
    leave_processes()


def main() -> int:
    """Follow; return the exit code."""
    for wanted in SIGNALS:  # a scheduler may signal every process: the leader saves first, and ends this one
        signal.signal(wanted, signal.SIG_IGN)
    task = Following.model_validate_json(sys.stdin.readline())
    Thread(target=_end_with_the_leader, daemon=True).start()
    leader = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is for the error message
    try:
        follow(task, leader)
    except TOLD as error:
        print(Failure.of(error).model_dump_json(), file=leader, flush=True)
        return FAILED
    return 0


def _end_with_the_leader() -> None:
    sys.stdin.read()
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
