"""Independent parts of a study at the same time, in threads that only wait for other hosts."""

import queue
import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context

WIDTH = 32
"""Parts under way at once; the workers set the pace, this only bounds how often Prefect's server is asked."""
STOP_SECONDS = 30.0
"""Longest wait for parts that were asked to stop."""


def run_side_by_side(calls: Sequence[Callable[[], object]], stop: threading.Event) -> None:
    """Make all calls, each in a thread with the context of this one; returns when all have ended.

    If a call fails, none begins any more, and those under way go on to their end: they may be hours in, on hosts that
    are well. Then the first error, in the order of the calls, is raised, with a note about the others. If this thread
    is interrupted, `stop` is set, by which the calls end, and they are given a moment for it.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(calls)):
        waiting.put(index)
    errors: dict[int, BaseException] = {}

    def work() -> None:
        while not (errors or stop.is_set()):
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                contexts[index].run(calls[index])
            except BaseException as error:  # kept for the thread that asked
                errors[index] = error

    contexts = [copy_context() for _ in calls]
    threads = [threading.Thread(target=work, name=f"part-{n}", daemon=True) for n in range(min(WIDTH, len(calls)))]
    for thread in threads:
        thread.start()
    try:
        _join(threads, None)
    except BaseException:
        stop.set()
        _join(threads, STOP_SECONDS)
        raise
    _raise_first([errors[index] for index in sorted(errors)])


def _join(threads: Sequence[threading.Thread], seconds: float | None) -> None:
    """Wait in short steps: a thread that waits without end hears no signal."""
    left = seconds
    for thread in threads:
        while thread.is_alive() and (left is None or left > 0):
            thread.join(timeout=0.2)
            left = None if left is None else left - 0.2


def _raise_first(errors: Sequence[BaseException]) -> None:
    if not errors:
        return
    for text in dict.fromkeys(str(error) for error in errors[1:] if error is not errors[0]):
        errors[0].add_note(f"also: {text}")
    raise errors[0]
