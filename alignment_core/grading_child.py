"""The program a grading child runs: questions by the chunk on stdin, verdicts on stdout.

    python -m alignment_core.grading_child fast|thorough WALL_SECONDS CPU_SECONDS MEMORY_BYTES [MARK_FD]

Every question is answered under three limits that the kernel enforces even inside a long C call: real time and
processor time by interval timers whose signals end this process, memory by RLIMIT_AS. Verdicts go out when
FLUSH_SECONDS have passed since the last ones, and the timers start anew with each: a pipe and a timer cost more
than most verdicts. So before each question its number is noted in the mark, a shared page the parent can read when
this process is no more. Messages are JSON; nothing is ever unpickled or evaluated.
"""

import contextlib
import json
import mmap
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from alignment_core.grading import compare
from alignment_core.verdicts import GradingMode, Question, Verdict

READY = b"ready"
ORPHAN_CHECK_SECONDS = 2.0
"""How often an idle child looks whether its parent still lives (others may hold the pipe's end open)."""
READ_BYTES = 1 << 16
FLUSH_SECONDS = 0.002
MARK = struct.Struct("i")
"""Number within its chunk of the question in work."""
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What parsers and sympy raise on hostile text; any other error ends the child, and the parent starts a new one."""
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


def serve(mode: GradingMode, limits: "TimeLimits", memory_bytes: int, mark: "mmap.mmap | bytearray") -> None:
    """Answer chunks until stdin ends or the parent is gone.

    A chunk is a line `[[answer, [gold, ...]], ...]`; what goes back are lines
    `[peak resident bytes, [[correct, method, status, fast, milliseconds], ...]]`.
    """
    parent = os.getppid()
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its children in good order
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    _warm_up(mode)
    _limit_memory(memory_bytes)
    os.write(replies, READY + b"\n")
    for line in _lines(parent):
        for verdicts in _answers(json.loads(line), mode, limits, mark):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT
            os.write(replies, json.dumps([peak, verdicts]).encode("ascii") + b"\n")


def _lines(parent: int) -> Iterator[bytes]:
    pieces: list[bytes] = []
    while os.getppid() == parent:
        if not select.select([0], [], [], ORPHAN_CHECK_SECONDS)[0]:
            continue
        received = os.read(0, READ_BYTES)
        if not received:
            return
        first, *rest = received.split(b"\n")
        pieces.append(first)
        for piece in rest:
            yield b"".join(pieces)
            pieces = [piece]


def _answers(
    chunk: list[tuple[str, list[str]]], mode: GradingMode, limits: "TimeLimits", mark: "mmap.mmap | bytearray"
) -> Iterator[list[Verdict]]:
    """The verdicts on a chunk, by groups that took FLUSH_SECONDS; the timers run while one is made."""
    ready: list[Verdict] = []
    flushed = started = limits.start()
    for number, (answer, golds) in enumerate(chunk):
        MARK.pack_into(mark, 0, number)
        verdict = _guarded(Question(answer, tuple(golds)), mode)
        now = time.perf_counter()
        ready.append(verdict._replace(milliseconds=round(1000 * (now - started), 3)))
        started = now
        if now - flushed > FLUSH_SECONDS:
            limits.stop()
            yield ready
            ready = []
            flushed = started = limits.start()
    limits.stop()
    if ready:
        yield ready


class TimeLimits(NamedTuple):
    """Interval timers whose signals end this process."""

    wall_seconds: float
    cpu_seconds: float

    def start(self) -> float:
        """Set both timers; returns the time."""
        signal.setitimer(signal.ITIMER_REAL, self.wall_seconds)
        signal.setitimer(signal.ITIMER_PROF, self.cpu_seconds)
        return time.perf_counter()

    def stop(self) -> None:
        """Put both timers off."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _guarded(question: Question, mode: GradingMode) -> Verdict:
    try:
        return _compare(question, mode)
    except _FAILURES:
        return Verdict(False, status="error")


def _compare(question: Question, mode: GradingMode) -> Verdict:
    if mode == "fast":
        return compare(*question)
    from alignment_core.thorough import compare_thoroughly

    return compare_thoroughly(question)


def _warm_up(mode: GradingMode) -> None:
    """What is imported or built at first use is paid for now, not on the first question's clock."""
    _compare(Question("2*sqrt(8)", (r"\sqrt{33}",)), mode)
    if mode == "thorough":
        from alignment_core.thorough import math_verify

        math_verify()("x", "y")


def _limit_memory(limit: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # some systems refuse this limit; the others remain
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(arguments: list[str]) -> None:
    """Serve with the limits of the command line."""
    mode: GradingMode = "thorough" if arguments[0] == "thorough" else "fast"
    mark = mmap.mmap(int(arguments[4]), MARK.size) if len(arguments) > 4 else bytearray(MARK.size)
    serve(mode, TimeLimits(float(arguments[1]), float(arguments[2])), int(arguments[3]), mark)


if __name__ == "__main__":
    main(sys.argv[1:])
