"""The program a grading child runs: questions by the chunk on stdin, verdicts on stdout.

    python -m alignment_core.grading_child fast|thorough WALL_SECONDS CPU_SECONDS MEMORY_BYTES [MARK_FD RESIDENT_BYTES]

Every question is answered under three limits that the kernel enforces even inside a long C call: real time and
processor time by interval timers whose signals end this process, memory by RLIMIT_AS. Verdicts go out when
FLUSH_SECONDS have passed since the last ones, and the timers start anew with each: a pipe and a timer cost more
than most verdicts. So before each question its number is noted in the mark, a shared page the parent can read when
this process is no more. Messages are JSON; nothing is ever unpickled or evaluated.

In the thorough mode the first import of math-verify costs seconds, so a killed process would be dear. There this
process only imports, and every chunk is answered by a forked copy of it: when one dies, the next is there within
milliseconds and shares its memory. Forking is safe here, as nothing in this process starts threads.
"""

import contextlib
import gc
import io
import json
import mmap
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

from alignment_core.grading import compare
from alignment_core.verdicts import GradeStatus, GradingMode, Question, Verdict

READY = b"ready"
ORPHAN_CHECK_SECONDS = 2.0
"""How often an idle child looks whether its parent still lives (others may hold the pipe's end open)."""
READ_BYTES = 1 << 16
FLUSH_SECONDS = 0.002
MARK = struct.Struct("i")
"""Number within its chunk of the question in work."""
NOTHING_BEGUN = -1
FRUITLESS = 2
"""How many processes may die over a chunk before they begin a question; after that its first question is blamed."""
LATE_SIGNALS = {signal.SIGALRM, signal.SIGPROF, signal.SIGXCPU}
RESIDENT_BYTES = 768 * 2**20
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What parsers and sympy raise on hostile text; any other error ends the child, and the parent starts a new one."""
_PIPE, _DESCRIPTORS = 3, 256
"""Where a copy writes its verdicts, and the end of the descriptors that it closes."""
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


Chunk = list[tuple[str, list[str]]]
Known = Mapping[int, Verdict]
"""Verdicts by number within a chunk, of questions that ended a process."""


def serve(
    mode: GradingMode, limits: "TimeLimits", memory_bytes: int, mark: mmap.mmap, resident_bytes: int = RESIDENT_BYTES
) -> None:
    """Answer chunks until stdin ends or the parent is gone.

    A chunk is a line `[[answer, [gold, ...]], ...]`; what goes back are lines
    `[resident bytes, [[correct, method, status, fast, milliseconds], ...]]`.
    """
    parent = os.getppid()
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its children in good order
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    _warm_up(mode)
    _limit_memory(memory_bytes)
    if mode == "thorough":
        gc.freeze()  # a copy's collector would write to, and so duplicate, the pages it shares
    os.write(replies, READY + b"\n")
    copies = Copies(limits, mark, resident_bytes)
    for line in _lines(parent):
        chunk = json.loads(line)
        for verdicts in copies.answers(chunk) if mode == "thorough" else _answers(chunk, mode, limits, mark):
            os.write(replies, json.dumps([_resident(), verdicts]).encode("ascii") + b"\n")
    copies.end()


def _resident() -> int:
    """Resident bytes of this process.

    Not the peak of `getrusage`, which begins on Linux with what the parent held when it started this program: under a
    parent with a model in memory every child would look grown.
    """
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT


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
    chunk: Chunk, mode: GradingMode, limits: "TimeLimits", mark: mmap.mmap, first: int = 0, known: Known | None = None
) -> Iterator[list[Verdict]]:
    """The verdicts on a chunk from `first` on, by groups that took FLUSH_SECONDS; the timers run while one is made."""
    ready: list[Verdict] = []
    flushed = started = limits.start()
    for number, (answer, golds) in enumerate(chunk[first:], first):
        MARK.pack_into(mark, 0, number)
        verdict = (known or {}).get(number)
        now = time.perf_counter()
        if verdict is None:
            verdict = _guarded(Question(answer, tuple(golds)), mode)
            now = time.perf_counter()
            verdict = verdict._replace(milliseconds=round(1000 * (now - started), 3))
        ready.append(verdict)
        started = now
        if now - flushed > FLUSH_SECONDS:
            limits.stop()
            yield ready
            ready = []
            flushed = started = limits.start()
    limits.stop()
    if ready:
        yield ready


class Copies:
    """Forked copies of this process, one at a time, that answer thorough questions in its place."""

    def __init__(self, limits: "TimeLimits", mark: mmap.mmap, resident_bytes: int) -> None:
        """No copy is made yet."""
        self._limits = limits
        self._mark = mark
        self._resident_bytes = resident_bytes
        self._pid = 0
        self._input = -1
        self._output: BinaryIO = io.BytesIO()

    def answers(self, chunk: Chunk) -> Iterator[list[Verdict]]:
        """The verdicts on a chunk, by as many copies as it takes."""
        known: dict[int, Verdict] = {}
        done = fruitless = 0
        while done < len(chunk):
            MARK.pack_into(self._mark, 0, NOTHING_BEGUN)
            heard = time.perf_counter()
            if verdict := known.get(done):
                done += 1
                yield [verdict]
                continue
            self._send([done, list(known.items()), chunk])
            while done < len(chunk) and (verdicts := self._receive()):
                done += len(verdicts)
                heard = time.perf_counter()
                yield verdicts
            if done == len(chunk) or (code := self.end()) == 0:  # a copy that had grown ends by itself
                continue
            # Verdicts may be lost with a copy: the guilty question need not be the first without one.
            guilty: int = MARK.unpack_from(self._mark, 0)[0]
            fruitless += 1
            if guilty < done or guilty in known:
                if fruitless <= FRUITLESS:
                    continue
                guilty = done
            status: GradeStatus = "timeout" if -code in LATE_SIGNALS else "error"
            known[guilty] = Verdict(False, status=status, milliseconds=1000 * (time.perf_counter() - heard))
            fruitless = 0

    def end(self) -> int:
        """Close the pipes, upon which a copy that still lives ends; returns how it ended."""
        if not self._pid:
            return 0
        os.close(self._input)
        self._output.close()
        pid, self._pid = self._pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _send(self, work: list[object]) -> None:
        if not self._pid:
            self._fork()
        with contextlib.suppress(BrokenPipeError):  # its death shows in what is received
            _write(self._input, json.dumps(work).encode("ascii") + b"\n")

    def _receive(self) -> list[Verdict]:
        """The next verdicts; none when the copy is dead. Its last words may be incomplete."""
        line = self._output.readline()
        return [Verdict(*verdict) for verdict in json.loads(line)] if line.endswith(b"\n") else []

    def _fork(self) -> None:
        original = os.getpid()
        taken, self._input = os.pipe()
        output, given = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(taken)
            os.close(given)
            self._output = open(output, "rb")  # noqa: SIM115 - lives as long as the copy
            return
        code = 1
        try:
            os.dup2(taken, 0)
            os.dup2(given, _PIPE)
            os.closerange(_PIPE + 1, _DESCRIPTORS)  # held open, they would hide that the original died
            self._serve(original)
            code = 0
        finally:
            os._exit(code)  # a copy must never go on with the work of its original

    def _serve(self, original: int) -> None:
        """What a copy does: answer until the original is gone or too much memory is taken."""
        for line in _lines(original):
            first, known, chunk = json.loads(line)
            verdicts_known = {number: Verdict(*verdict) for number, verdict in known}
            for verdicts in _answers(chunk, "thorough", self._limits, self._mark, first, verdicts_known):
                _write(_PIPE, json.dumps(verdicts).encode("ascii") + b"\n")
                if _resident() > self._resident_bytes:
                    return


def _write(descriptor: int, data: bytes) -> None:
    """All of `data`; where the reader is gone this raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


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
    mark = mmap.mmap(int(arguments[4]), MARK.size) if len(arguments) > 4 else mmap.mmap(-1, MARK.size)
    resident_bytes = int(arguments[5]) if len(arguments) > 5 else RESIDENT_BYTES
    serve(mode, TimeLimits(float(arguments[1]), float(arguments[2])), int(arguments[3]), mark, resident_bytes)


if __name__ == "__main__":
    main(sys.argv[1:])
