"""SIGTERM and Ctrl-C while a stage runs: it saves at its next step boundary, then stops.

The handlers are there only while a stage runs in the main thread. Whoever handled the signal before (a Prefect
worker, the command) then gets it, once the stage has saved.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 1.0
"""Two signals closer than this are one: `timeout` and some process managers send theirs twice."""
Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupted(KeyboardInterrupt):
    """A stage was asked to stop, and did; what its last checkpoint covers is kept."""

    def __init__(self, signum: int, kept: str = "") -> None:
        self.signum = signum
        self.kept = kept
        """What the next run finds, in words."""
        super().__init__(f"stopped by {signal.Signals(signum).name}" + (f": {kept}" if kept else ""))

    @property
    def exit_code(self) -> int:
        """128 + signal, as shells have it: 143 after SIGTERM, 130 after Ctrl-C."""
        return 128 + self.signum


class Interruption:
    """Whether a signal has asked the stage to stop."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.patient = False
        """Whether a good moment to stop will come: a step boundary, or the end of the publication. Without one the
        signal stops the stage where it is; so does a second one."""
        self._asked_at = 0.0

    def receive(self, signum: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._asked_at = signum, now
        elif now - self._asked_at < ECHO_SECONDS:
            return
        else:
            self.patient = False
        if not self.patient:
            raise Interrupted(signum)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Handle SIGTERM and SIGINT for the length of the block; in a thread that cannot, do nothing.

    If one came, the block ends in `Interrupted`, or in what the handler from before raises.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before: dict[int, Handler] = {signum: signal.getsignal(signum) or signal.SIG_DFL for signum in SIGNALS}
    stopped: Interrupted | None = None
    for wanted in SIGNALS:
        if before[wanted] is not signal.SIG_IGN:  # nohup and the like: whoever ignores a signal goes on doing so
            signal.signal(wanted, interruption.receive)
    try:
        yield interruption
    except Interrupted as error:
        stopped = error
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if interruption.signum is not None:
        stopped = stopped or Interrupted(interruption.signum, "the stage had finished, and is kept")
        _pass_on(stopped, before[stopped.signum])


def _pass_on(stopped: Interrupted, handler: Handler) -> NoReturn:
    """Raise what the handler from before raises, with `stopped` as its context; else `stopped` itself."""
    if callable(handler) and handler is not signal.default_int_handler:
        try:
            raise stopped
        except Interrupted:
            handler(stopped.signum, None)
    raise stopped


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Have SIGTERM raise `Interrupted` in the block, so that what is open is closed: its default ends a process."""

    def stop(signum: int, _frame: FrameType | None) -> NoReturn:
        raise Interrupted(signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code_of(error: BaseException | None) -> int | None:
    """130 or 143 if Ctrl-C or SIGTERM is behind an error, however it was wrapped on its way; else None."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    return error.exit_code if isinstance(error, Interrupted) else 128 + signal.SIGINT
