"""One grading child as its parent sees it: started, asked over pipes, read with a deadline, and told why it died."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment_core import grading_child
from alignment_core.grading_child import LATE_SIGNALS, MARK, NOTHING_BEGUN, RESIDENT_BYTES
from alignment_core.verdicts import GradingMode, Question, Verdict

MODULE = grading_child.main.__module__
GRACE_SECONDS = 0.5
"""How much later than the child's own timers the parent gives up on a verdict."""
START_SECONDS = 120.0
"""Limit for starting a child and for what it imports."""
SEND_SECONDS = 10.0
"""Limit for an idle child to take a chunk."""


@dataclass(frozen=True)
class Limits:
    """What one question may cost, and when a child is replaced.

    Wall time and the parent's grace together stay below 2 s, which is what a caller may wait for a verdict.
    """

    wall_seconds: float = 1.2
    cpu_seconds: float = 1.0
    memory_bytes: int = 2 * 2**30
    """Address space of a child."""
    resident_bytes: int = RESIDENT_BYTES
    """A process whose resident memory has grown beyond this gives way to a new one after its question."""


class Late(Exception):
    """A question exceeded a limit of time, and the child is of no more use."""


class Gone(Exception):
    """The child died of something else."""


class GradingProcess:
    """A child process; used by one thread at a time, killed by any."""

    def __init__(self, mode: GradingMode, limits: Limits) -> None:
        """Start the child without waiting for it. Raises OSError where the system refuses."""
        self._limits = limits
        self._received = b""
        self._asked = 0.0
        self._ready = False
        home = str(Path(__file__).resolve().parents[1])
        search_path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        self._mark = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._mark.truncate(MARK.size)
        settings = [
            limits.wall_seconds,
            limits.cpu_seconds,
            limits.memory_bytes,
            self._mark.fileno(),
            limits.resident_bytes,
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, mode, *map(str, settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,  # a thorough child has copies of itself, which end with it
            pass_fds=[self._mark.fileno()],
            env={**os.environ, "PYTHONPATH": search_path},
        )
        pipes = (self._process.stdin, self._process.stdout)
        self._input, self._output = (pipe.fileno() for pipe in pipes if pipe is not None)
        os.set_blocking(self._input, False)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Return once the child has imported what it needs; raises `Late` or `Gone`."""
        if not self._ready:
            self._line(START_SECONDS)
            self._ready = True

    def send(self, questions: Sequence[Question]) -> None:
        """Hand over a chunk; raises `Late` or `Gone`."""
        rest = memoryview(json.dumps(questions).encode("ascii") + b"\n")
        os.pwrite(self._mark.fileno(), MARK.pack(NOTHING_BEGUN), 0)
        self._asked = time.monotonic()
        deadline = self._asked + SEND_SECONDS
        try:
            while rest:
                _wait(self._input, select.POLLOUT, deadline)
                rest = rest[os.write(self._input, rest) :]
        except (BrokenPipeError, ValueError) as error:
            raise self._death() from error

    def receive(self) -> tuple[list[Verdict], int]:
        """The next verdicts and the child's resident bytes; raises `Late` or `Gone`."""
        line = self._line(self._limits.wall_seconds + GRACE_SECONDS)
        self._asked = time.monotonic()
        try:
            resident, verdicts = json.loads(line)
        except ValueError as error:
            raise Gone from error
        return [Verdict(*verdict) for verdict in verdicts], resident

    def in_work(self) -> int:
        """Number of the question, within the chunk sent last, that the child began last; -1 for none."""
        return int(MARK.unpack(os.pread(self._mark.fileno(), MARK.size, 0))[0])

    def waiting(self) -> float:
        """Milliseconds since the last chunk was sent or verdicts came."""
        return 1000 * (time.monotonic() - self._asked)

    def kill(self) -> None:
        """End the child and its copies; harmless if it is dead."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it may be dying, or not yet lead a group
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill, and free the pipes; only for the thread that uses the process."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._mark):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _line(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            _wait(self._output, select.POLLIN, deadline)
            received = os.read(self._output, 1 << 16)
            if not received:
                raise self._death()
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _death(self) -> Late | Gone:
        """How the child ended: by a timer's signal, or otherwise."""
        self._process.wait()
        return Late() if self._process.returncode in {-number for number in LATE_SIGNALS} else Gone()


def _wait(descriptor: int, event: int, deadline: float) -> None:
    """Return when the pipe is ready; raises `Late` after the deadline."""
    poll = select.poll()  # select.select knows no descriptor above 1023
    poll.register(descriptor, event)
    if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
        raise Late
