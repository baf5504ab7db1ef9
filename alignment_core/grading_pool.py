"""math-verify in a child process that we own: asked over a pipe, killed when late, started anew when needed.

math-verify parses text with sympy, which can run for hours or eat all memory, and its own time limits use
signal timers that only work on a main thread and disarm other people's timers. Here the limits are the
parent's clock and the child's resource limits; the parent touches no signal, and any thread may ask.
Parent and child exchange lines of JSON (run as a program, this module is the child).
"""

import atexit
import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from alignment_core.records import GradeStatus

WALL_SECONDS = 5.0
"""Limit for one comparison."""
START_SECONDS = 120.0
"""Limit for starting the child and importing math-verify in it."""
MEMORY_BYTES = 4 * 2**30

MODULE = "alignment_core.grading_pool"


class GradingPool:
    """One child process and the lock in front of it.

    Raises ImportError at the first question if math-verify is not installed.
    """

    def __init__(self, wall_seconds: float = WALL_SECONDS) -> None:
        """No child is started before the first question."""
        self.wall_seconds = wall_seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, answer: str, gold: str) -> tuple[bool, GradeStatus]:
        """Whether math-verify holds the two LaTeX answers equal, and how it ended: ok, timeout or error."""
        request = json.dumps({"answer": answer, "gold": gold, "seconds": self.wall_seconds})
        with self._lock:
            child = self._running_child()
            if child is None:
                return False, "error"
            try:
                _send(child, request)
                reply = _receive(child, self.wall_seconds)
            except (TimeoutError, EOFError, BrokenPipeError) as failure:
                self._kill()
                return False, "timeout" if isinstance(failure, TimeoutError) else "error"
        return reply == "true", "error" if reply == "null" else "ok"

    def close(self) -> None:
        """Kill the child, if there is one; a later question starts another."""
        with self._lock:
            self._kill()

    def _running_child(self) -> subprocess.Popen[bytes] | None:
        """The child, started if need be; None if it cannot be brought up."""
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._kill()
        self._child = _start()
        try:
            _receive(self._child, START_SECONDS)
        except (TimeoutError, EOFError):
            self._kill()
        return self._child

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


_POOL = GradingPool()
atexit.register(_POOL.close)


def math_verify_equal(answer: str, gold: str) -> tuple[bool, GradeStatus]:
    """`GradingPool.ask` on the process's own pool."""
    return _POOL.ask(answer, gold)


def _start() -> subprocess.Popen[bytes]:
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError("thorough grading needs math-verify: install math-verify, or grade with thorough=False")
    package_home = str(Path(__file__).resolve().parents[1])
    search_path = os.pathsep.join(filter(None, [package_home, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": search_path},
    )


def _send(child: subprocess.Popen[bytes], line: str) -> None:
    if child.stdin is None:
        raise EOFError("the grading child has no input")
    child.stdin.write(line.encode("ascii") + b"\n")
    child.stdin.flush()


def _receive(child: subprocess.Popen[bytes], seconds: float) -> str:
    """The next line from the child; TimeoutError when it is late, EOFError when it died."""
    if child.stdout is None:
        raise EOFError("the grading child has no output")
    deadline = time.monotonic() + seconds
    received = b""
    while not received.endswith(b"\n"):
        ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError("the grading child is late")
        chunk = os.read(child.stdout.fileno(), 4096)
        if not chunk:
            raise EOFError("the grading child died")
        received += chunk
    return received.decode("ascii").strip()


def serve() -> None:
    """The child's loop: a request a line on stdin, `true`, `false` or `null` (failed) a line back."""
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        verify = _math_verify()
        _limit_memory()
        verify("1", "1")  # the parser's tables load now, not on the first question's clock
        print("ready", file=replies, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            _limit_cpu(request["seconds"])
            print(json.dumps(_guarded(verify, request["answer"], request["gold"])), file=replies, flush=True)


def _guarded(verify: Callable[[str, str], bool], answer: str, gold: str) -> bool | None:
    """The verdict, or None where the library gives up with one of the errors its parsers raise."""
    try:
        return verify(answer, gold)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError):
        return None


def _math_verify() -> Callable[[str, str], bool]:
    """The comparison, with the library's own signal timers off."""
    from math_verify import LatexExtractionConfig, parse, verify

    def compare(answer: str, gold: str) -> bool:
        sides = [
            parse(
                f"${text}$",
                extraction_config=(LatexExtractionConfig(),),
                extraction_mode="first_match",
                parsing_timeout=None,
            )
            for text in (gold, answer)
        ]
        return bool(verify(sides[0], sides[1], timeout_seconds=None))

    return compare


def _limit_memory() -> None:
    import resource

    with contextlib.suppress(ValueError, OSError):  # some systems refuse this limit; the wall limit remains
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _limit_cpu(seconds: float) -> None:
    """Let the kernel end this process should the parent die while a comparison runs away."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime + seconds) + 5, hard))


if __name__ == "__main__":
    serve()
