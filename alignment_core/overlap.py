"""Grading that goes on while sampling does: responses are handed over as they end and graded in a thread beside it.

Decoding spends its time in torch, which lets other threads run meanwhile; a grader in processes of its own
(math-verify) costs the sampling thread nothing at all.
"""

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from alignment_core.records import GradedResponse

Grader = Callable[[Sequence[str], Sequence[str]], list[GradedResponse]]
"""(responses, ground truths) -> verdicts, one each; each verdict depends on its own response and truth alone."""


class OverlappedGrading:
    """Verdicts on the responses to B requests whose ground truths are known. To be used as a context."""

    def __init__(self, grade: Grader, truths: Sequence[str]) -> None:
        self._grade, self._truths = grade, truths
        self._ended: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._handed_over: set[int] = set()
        self._verdicts: dict[int, GradedResponse] = {}
        self._tasks: list[Future[None]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grading")
        self.spans: list[tuple[float, float]] = []
        """When the thread was grading: (start, end) by `time.perf_counter`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def finished(self, index: int, text: str) -> None:
        """Hand over the response to request `index`; it is graded as soon as the thread is free."""
        self._put(index, text)
        self._tasks.append(self._thread.submit(self._grade_ended))

    def verdicts(self, texts: Sequence[str]) -> list[GradedResponse]:
        """Verdicts on all responses, in order, after handing over those that nobody has.

        Raises whatever the grader raised.
        """
        for index, text in enumerate(texts):
            if index not in self._handed_over:
                self._put(index, text)
        self._tasks.append(self._thread.submit(self._grade_ended))
        for task in self._tasks:
            task.result()
        return [self._verdicts[index] for index in range(len(texts))]

    def seconds_before(self, moment: float) -> float:
        """Seconds of grading done before `moment`."""
        return sum(max(min(end, moment) - start, 0.0) for start, end in self.spans)

    def _put(self, index: int, text: str) -> None:
        self._handed_over.add(index)
        self._ended.put((index, text))

    def _grade_ended(self) -> None:
        """Grade all that has ended by now; nothing where an earlier call has taken it along."""
        batch = []
        while not self._ended.empty():
            batch.append(self._ended.get())
        if not batch:
            return
        started = time.perf_counter()
        verdicts = self._grade([text for _, text in batch], [self._truths[index] for index, _ in batch])
        self._verdicts.update(zip((index for index, _ in batch), verdicts, strict=True))
        self.spans.append((started, time.perf_counter()))
