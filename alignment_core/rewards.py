r"""Rewards of a response: format, answer, and the reward trained on, over the one answer parser in `grading`.

- `r1_zero`: the strict tag format `</think> <answer>...</answer>`; reward = answer reward.
- `question_only`: no tags, the answer is the last `\boxed{...}`.
- `number`: the last number of the response against the gold, numerically; for plain question-answer accuracy.
- `countdown`: the tag format; the answer is an expression worth what the gold is, over the gold's numbers.

Numbers and countdown expressions are compared exactly, whatever the mode.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import get_args

from alignment_core.answer_parsers import parse_gsm8k_response as parse_gsm8k_response
from alignment_core.answer_parsers import parse_mmlu_response as parse_mmlu_response
from alignment_core.config import RewardName
from alignment_core.grading import compare
from alignment_core.grading_pool import CHUNK, Batch, GradingPool, shared_pool
from alignment_core.readings import READERS, Reader, Reading
from alignment_core.records import GradedResponse
from alignment_core.verdicts import GradingMode, GroundTruth, Verdict, plain_truth

Row = tuple[str, GroundTruth]
MAX_STORED = 1_000
"""Characters of the extracted answer kept in a record."""


def r1_zero_reward_fn(response: str, ground_truth: GroundTruth, fast: bool = True) -> dict[str, float]:
    r"""Rewards (0.0 or 1.0) under the strict tag format: `format_reward`, `answer_reward`, `reward`.

    The answer is what follows the last `<answer>`, or the last `\boxed{...}` in it. `fast=False` is the thorough mode
    (ImportError where math-verify is not installed). A list of gold answers means any of them.
    """
    return _rewards(response, ground_truth, "r1_zero", fast)


def question_only_reward_fn(response: str, ground_truth: GroundTruth, fast: bool = True) -> dict[str, float]:
    r"""Rewards (0.0 or 1.0) of the last `\boxed{...}` of the response; all zero if there is none."""
    return _rewards(response, ground_truth, "question_only", fast)


def grade_batch(
    responses: Sequence[str],
    ground_truths: Sequence[GroundTruth],
    reward: RewardName = "r1_zero",
    mode: GradingMode = "fast",
    workers: int = 0,
    timed: bool = False,
) -> list[GradedResponse]:
    """One verdict per response, in order. `submit_batch` tells of the arguments, and does not wait."""
    return submit_batch(responses, ground_truths, reward, mode, workers, timed).result()


def submit_batch(
    responses: Sequence[str],
    ground_truths: Sequence[GroundTruth],
    reward: RewardName = "r1_zero",
    mode: GradingMode = "fast",
    workers: int = 0,
    timed: bool = False,
) -> "GradesUnderWay":
    """Start grading and return at once; `result()` of what is returned waits for one verdict per response, in order.

    Answers are extracted here, by linear scans, and compared in `workers` child processes under limits of time and
    memory. With 0 workers the fast mode compares in this process, which is bounded too; the thorough mode then takes
    one child. `timed` fills in `milliseconds`. Of a list of gold answers the first `MAX_GOLDS` (1,000) count.

    Raises, before anything is graded: ValueError for an unknown reward or mode, workers below 0, lists of different
    lengths or an empty list of golds; TypeError, naming the row, for what is no text or gold answer; ImportError for
    the thorough mode without math-verify.
    """
    return _submit(responses, ground_truths, reward, mode, workers, timed)


def _submit(
    responses: Sequence[str],
    ground_truths: Sequence[GroundTruth],
    reward: RewardName,
    mode: GradingMode,
    workers: int,
    timed: bool,
    first: int = 0,
) -> "GradesUnderWay":
    """`submit_batch` for rows that are numbered from `first` on."""
    if reward not in READERS:
        raise ValueError(f"no reward {reward!r}: choose one of {', '.join(READERS)}")
    if mode not in get_args(GradingMode):
        raise ValueError(f"no mode {mode!r}: choose one of {', '.join(get_args(GradingMode))}")
    if not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers is {workers!r}: give 0 to grade in this process, or a number of children")
    pairs = _pairs(responses, ground_truths, first)
    pool = shared_pool(max(workers, 1), mode) if workers or mode == "thorough" else None
    under_way = GradesUnderWay(pool, mode, timed)
    for start in range(0, len(pairs), CHUNK):  # the first answers are compared while later ones are read
        under_way.add(READERS[reward], pairs[start : start + CHUNK])
    return under_way


def _pairs(responses: Sequence[str], ground_truths: Sequence[GroundTruth], first: int) -> list[Row]:
    """The rows, checked, with their ground truths in plain types."""
    for name, given in (("responses", responses), ("ground_truths", ground_truths)):
        if isinstance(given, str | bytes | Mapping) or not (hasattr(given, "__len__") and hasattr(given, "__iter__")):
            raise TypeError(f"{name} is a {type(given).__name__}: give a list; grade_stream takes an iterator of rows")
    if len(responses) != len(ground_truths):
        raise ValueError(f"{len(responses)} responses but {len(ground_truths)} ground truths: give one for each")
    pairs: list[Row] = []
    for number, (response, truth) in enumerate(zip(responses, ground_truths, strict=True), first):
        if not isinstance(response, str):
            raise TypeError(f"response {number} is a {type(response).__name__}: give a text")
        try:
            pairs.append((response, plain_truth(truth)))
        except (TypeError, ValueError) as error:
            raise type(error)(f"ground truth {number} {error}") from error
    return pairs


class GradesUnderWay:
    """Responses that were read, and answers that a pool may still be comparing."""

    def __init__(self, pool: GradingPool | None, mode: GradingMode, timed: bool) -> None:
        """Without a pool, answers are compared as they are read."""
        self._pool = pool
        self._mode: GradingMode = mode
        self._timed = timed
        self._readings: list[Reading] = []
        self._spent: list[float] = []
        self._batches: list[Batch] = []

    def add(self, read: Reader, rows: Sequence[Row]) -> None:
        """Read some more responses and have their answers compared."""
        questions = []
        for response, ground_truth in rows:
            started = time.perf_counter()
            reading = read(response, ground_truth)
            if reading.verdict is None and self._pool is None:
                reading = replace(reading, verdict=compare(*reading.question))
            elif reading.verdict is None:
                questions.append(reading.question)
            self._readings.append(reading)
            self._spent.append(1000 * (time.perf_counter() - started))
        if self._pool is not None and questions:
            self._batches.append(self._pool.submit(questions))

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return all(batch.done() for batch in self._batches)

    def result(self, timeout: float | None = None) -> list[GradedResponse]:
        """One verdict per response, in order; for errors see `grading_pool.Batch.result`, whose batches these are."""
        answers = iter([verdict for batch in self._batches for verdict in batch.result(timeout)])
        return [
            _record(reading, reading.verdict or next(answers), self._mode, spent if self._timed else None)
            for reading, spent in zip(self._readings, self._spent, strict=True)
        ]


def grade_stream(
    rows: Iterable[Row],
    reward: RewardName = "r1_zero",
    mode: GradingMode = "fast",
    workers: int = 0,
    timed: bool = False,
    chunk: int = 256,
) -> Iterator[GradedResponse]:
    """The verdicts on (response, ground truth) rows, in order; rows are read a few chunks ahead and never kept."""
    source = iter(rows)
    under_way: deque[GradesUnderWay] = deque()
    read = 0
    while batch := list(islice(source, chunk)):
        responses, truths = [row[0] for row in batch], [row[1] for row in batch]
        under_way.append(_submit(responses, truths, reward, mode, workers, timed, read))
        read += len(batch)
        if len(under_way) > 1 + workers:
            yield from under_way.popleft().result()
    for grades in under_way:
        yield from grades.result()


def _rewards(response: str, ground_truth: GroundTruth, reward: RewardName, fast: bool) -> dict[str, float]:
    (grade,) = grade_batch([response], [ground_truth], reward, "fast" if fast else "thorough")
    return {
        "format_reward": grade.format_reward,
        "answer_reward": grade.answer_reward,
        "reward": grade.reward,
    }


def _record(reading: Reading, verdict: Verdict, mode: GradingMode, spent: float | None) -> GradedResponse:
    correct = float(verdict.correct)
    # Where a verdict does not tell, the modes agree; a child that died in the thorough tests had failed the fast ones.
    fast = correct if verdict.fast is None else float(verdict.fast)
    return GradedResponse(
        format_reward=float(reading.formatted),
        answer_reward=correct,
        reward=correct,
        extracted=None if reading.answer is None else _storable(reading.answer),
        method=verdict.method,
        status=verdict.status,
        suspicious=reading.suspicious,
        fast_reward=fast if mode == "thorough" else None,
        milliseconds=None if spent is None else spent + (verdict.milliseconds or 0.0),
    )


def _storable(text: str) -> str:
    """Short, and free of the lone surrogates that UTF-8 cannot carry."""
    return text.strip()[:MAX_STORED].encode("utf-8", "replace").decode("utf-8")
