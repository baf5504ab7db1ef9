"""A Prefect worker tied to the life of the command that started it: python -m flows.worker_process OPTIONS.

It reads a pipe whose other end only that command holds. When that closes, however the command ended, the flow runs of
this worker are asked to save and end, then the worker stops. (By itself a worker that is told to stop kills them.)
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

MARK = "ALIGNFLOW_WORKER"
"""In the environment of a worker and of all it starts, so that these are found when it is dead."""
END_SECONDS = 60.0
"""Longest wait for flow runs that were asked to end; then they are killed with their worker."""


def main() -> None:
    """`prefect worker start` with the options given."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    from prefect.cli import app

    sys.argv[1:1] = ["worker", "start"]
    app()


def _end_with_the_parent() -> None:
    while os.read(0, 1):
        pass
    end_processes(children_of(os.getpid()), lambda: False)
    os.kill(os.getpid(), signal.SIGTERM)


def end_processes(asked: Sequence[int], hurry: Callable[[], bool]) -> None:
    """SIGTERM to processes; wait until they have ended, or for a while, or until in a hurry."""
    for process in asked:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    while any(map(_runs, asked)) and time.monotonic() < deadline and not hurry():
        time.sleep(0.1)


def children_of(parent: int) -> list[int]:
    """Processes that this one started and that still run; none where /proc is not there to tell."""
    return [process for process, above in _parents().items() if above == parent]


def left_by(mark: str) -> list[int]:
    """Processes that outlived the worker with this mark in its environment: the outermost of each that are left."""
    parents, wanted = _parents(), f"{MARK}={mark}".encode()
    marked = {process for process in parents if wanted in _environment(process)}
    return sorted(process for process in marked if parents[process] not in marked)


def _parents() -> dict[int, int]:
    """Parent of each process that runs."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # pid (name) state parent …: the name may hold blanks and brackets.
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = int(parent)
    return found


def _runs(process: int) -> bool:
    return process in _parents()


def _environment(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


if __name__ == "__main__":
    main()
