"""How tests wait for other processes and threads: by looking again, with a deadline that a stalled machine keeps."""

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

DEADLINE = 200.0
"""Seconds: a busy machine takes long to start a process that imports torch."""


def wait_until(condition: Callable[[], object], what: str, host: subprocess.Popen[str] | None = None) -> None:
    """Wait for something that a host does; fails with what the host said if it ends before, or never does it."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if host is not None and host.poll() is not None:
            raise AssertionError(f"the host ended with {host.returncode} before {what}: {host.communicate()[0]}")
        if time.monotonic() > deadline:
            raise AssertionError(f"no sign of {what} in {DEADLINE} s")
        time.sleep(0.05)


def matching(folder: Path, pattern: str) -> list[Path]:
    """`folder.glob` while others add and remove: looked for again where a folder went between two looks into it."""
    while True:
        with suppress(FileNotFoundError):
            return list(folder.glob(pattern))
