"""A pool of grading children that we own: questions go out in chunks, verdicts come back in order.

Each child answers under limits of time, processor time and memory for every single question
(`alignment_core.grading_child`). One that exceeds a limit dies by it, its question scores 0 with status
`timeout` or `error`, and a new child goes on with the rest of the chunk. A child answers in order and at once, so
the first question without a verdict is always the guilty one. A thorough child takes seconds to start, so copies that
it forks of itself answer and die in its place. The parent forks nothing, sets no signal and no timer, keeps no
answers, and may ask from any thread.
"""

import atexit
import contextlib
import importlib.util
import os
import queue
import sys
import threading
from collections.abc import Sequence

from alignment_core.failures import HostError
from alignment_core.grading_child import FRUITLESS
from alignment_core.grading_process import MODULE, Gone, GradingProcess, Late, Limits
from alignment_core.verdicts import GradeStatus, GradingMode, Question, Verdict

CHUNK = 128
"""Most questions sent to a child at once."""
_CLOSED = "the grading pool was closed before the verdict was there: grade again"


class Batch:
    """Questions on their way through a pool."""

    def __init__(self, questions: Sequence[Question]) -> None:
        """Nothing is answered yet."""
        self.questions = questions
        self._verdicts: list[Verdict | None] = [None] * len(questions)
        self._missing = len(questions)
        self._failure: Exception | None = None
        self._changed = threading.Condition()

    def done(self) -> bool:
        """Whether `result` returns at once."""
        with self._changed:
            return self._missing == 0 or self._failure is not None

    def result(self, timeout: float | None = None) -> list[Verdict]:
        """The verdicts in order, once all are there.

        Raises TimeoutError after `timeout` seconds (None waits), HostError where no child could be started,
        RuntimeError where the pool was closed.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._missing == 0 or self._failure is not None, timeout):
                raise TimeoutError(f"{self._missing} of {len(self.questions)} verdicts are not there yet")
            if self._failure is not None:
                raise self._failure
            return [verdict for verdict in self._verdicts if verdict is not None]

    def settle(self, indices: Sequence[int], verdicts: Sequence[Verdict]) -> None:
        """Note some verdicts."""
        with self._changed:
            for index, verdict in zip(indices, verdicts, strict=True):
                self._verdicts[index] = verdict
            self._missing -= len(indices)
            if self._missing == 0:
                self._changed.notify_all()

    def fail(self, failure: Exception) -> None:
        """Give up on the batch: `result` raises."""
        with self._changed:
            self._failure = failure
            self._changed.notify_all()


Work = tuple[Batch, range] | None
"""Questions of a batch by index; None wakes a thread that is to end."""


class GradingPool:
    """`workers` children, each driven by a thread of its own; started by the first question.

    Use as a context manager, or `close` it; what is left is closed at exit. Raises ImportError for `thorough` where
    math-verify is not installed.
    """

    def __init__(self, workers: int = 1, mode: GradingMode = "fast", limits: Limits | None = None) -> None:
        """No child is started yet."""
        if workers < 1:
            raise ValueError(f"a pool of {workers} workers: give at least 1")
        if mode == "thorough" and importlib.util.find_spec("math_verify") is None:
            raise ImportError("thorough grading needs math-verify: install math-verify, or grade with mode='fast'")
        self.workers = workers
        self.mode = mode
        self.limits = limits or Limits()
        self._work: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._drivers: list[_Driver] = []
        self._closed = False

    def submit(self, questions: Sequence[Question]) -> Batch:
        """Start answering and return at once; the batch's `result` waits for the verdicts."""
        batch = Batch(questions)
        self._start()
        size = max(1, min(CHUNK, -(-len(questions) // self.workers)))
        for start in range(0, len(questions), size):
            self._work.put((batch, range(start, min(start + size, len(questions)))))
        return batch

    def compare(self, questions: Sequence[Question]) -> list[Verdict]:
        """One verdict per question, in order."""
        return self.submit(questions).result()

    def close(self) -> None:
        """End the children; batches under way fail. A closed pool takes no more questions."""
        with self._lock:
            self._closed = True
            _OPEN.discard(self)
            for driver in self._drivers:
                driver.stop()
            failure = RuntimeError(_CLOSED)
            with contextlib.suppress(queue.Empty):
                while True:
                    work = self._work.get_nowait()
                    if work is not None:
                        work[0].fail(failure)
            for _ in self._drivers:
                self._work.put(None)

    def pids(self) -> list[int]:
        """Process ids of the children alive now."""
        return [pid for driver in self._drivers if (pid := driver.pid()) is not None]

    def _start(self) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("this grading pool was closed: make a new one")
            _OPEN.add(self)
            while len(self._drivers) < self.workers:
                self._drivers.append(_Driver(self._work, self.mode, self.limits))
                self._drivers[-1].start()

    def __enter__(self) -> "GradingPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_OPEN: set[GradingPool] = set()
_SHARED: dict[tuple[int, int, GradingMode], GradingPool] = {}
_SHARED_LOCK = threading.Lock()


def shared_pool(workers: int, mode: GradingMode) -> GradingPool:
    """The pool of this process for so many workers and this mode, kept until exit."""
    key = (os.getpid(), workers, mode)  # threads do not survive a fork, so a forked process makes its own
    with _SHARED_LOCK:
        if key not in _SHARED:
            _SHARED[key] = GradingPool(workers, mode)
        return _SHARED[key]


@atexit.register
def close_all() -> None:
    """Close every pool of this process, and forget the shared ones."""
    with _SHARED_LOCK:
        _SHARED.clear()
    for pool in list(_OPEN):
        pool.close()


class _Driver(threading.Thread):
    """Feeds one child at a time, and replaces it when it dies or has grown."""

    def __init__(self, work: "queue.SimpleQueue[Work]", mode: GradingMode, limits: Limits) -> None:
        super().__init__(name="grading", daemon=True)
        self._work = work
        self._mode = mode
        self._limits = limits
        self._child: GradingProcess | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def pid(self) -> int | None:
        """Process id of the child, if there is one."""
        child = self._child
        return None if child is None else child.pid

    def stop(self) -> None:
        """End the child and the thread."""
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.kill()

    def run(self) -> None:
        """Answer chunks until stopped."""
        while (work := self._work.get()) is not None:
            batch, indices = work
            try:
                if self._stopped:  # closed after this chunk was taken: its asker must hear of it
                    raise RuntimeError(_CLOSED)
                self._answer(batch, list(indices))
            except (RuntimeError, OSError, ValueError) as failure:
                batch.fail(failure)
        with self._lock:
            self._discard()

    def _answer(self, batch: Batch, pending: list[int]) -> None:
        """Have all of `pending` answered, by as many children as it takes."""
        fruitless = 0
        while pending:
            child = self._ready_child()
            sent = pending
            try:
                child.send([batch.questions[index] for index in sent])
                while pending:
                    verdicts, resident = child.receive()
                    batch.settle(pending[: len(verdicts)], verdicts)
                    pending = pending[len(verdicts) :]
                    if resident > self._limits.resident_bytes:
                        self._replace()
                        break
            except (Late, Gone) as failure:
                if self._stopped:  # `stop` killed the child: its question is not to blame
                    raise RuntimeError(_CLOSED) from failure
                # Verdicts may be lost with the child: the guilty question need not be the first without one. A child
                # that died between questions is nobody's fault, unless it happens again and again.
                fruitless += 1
                guilty = sent[child.in_work()] if child.in_work() in range(len(sent)) else None
                if guilty not in pending:
                    guilty = pending[0] if fruitless > FRUITLESS else None
                if guilty is not None:
                    status: GradeStatus = "timeout" if isinstance(failure, Late) else "error"
                    batch.settle([guilty], [Verdict(False, status=status, milliseconds=child.waiting())])
                    pending = [index for index in pending if index != guilty]
                    fruitless = 0
                self._replace()

    def _ready_child(self) -> GradingProcess:
        child = self._child or self._replace()
        try:
            child.wait_until_ready()
        except (Late, Gone) as error:
            with self._lock:
                self._discard()
            if self._stopped:
                raise RuntimeError(_CLOSED) from error
            raise HostError(
                f"a grading child does not start: `{sys.executable} -m {MODULE} {self._mode} 2 1 {2**31}` shows why"
            ) from error
        return child

    def _replace(self) -> GradingProcess:
        """Start a new child, which imports what it needs while others go on."""
        with self._lock:
            self._discard()
            if self._stopped:
                raise RuntimeError(_CLOSED)
            self._child = GradingProcess(self._mode, self._limits)
            return self._child

    def _discard(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()
