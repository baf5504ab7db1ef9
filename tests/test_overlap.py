"""Grading beside sampling: every verdict in its place, work done before the sampler ends, errors not lost."""

import threading
import time
from collections.abc import Sequence

import pytest
from tiny_models import byte_tokenizer, tiny_model
from transformers import PreTrainedModel
from waiting import wait_until

from alignment_core.config import SamplingConfig
from alignment_core.overlap import OverlappedGrading
from alignment_core.records import Completion, GradedResponse, Problem
from alignment_core.rollouts import collect_rollout
from alignment_core.sampling import Finished, Progress, PromptRequest, Sampler, build_requests, make_sampler
from alignment_core.training_config import GRPOConfig
from benchmarks.overlap import Line, draw

TOKENIZER = byte_tokenizer()


def exact(responses: Sequence[str], truths: Sequence[str]) -> list[GradedResponse]:
    values = [float(response == truth) for response, truth in zip(responses, truths, strict=True)]
    return [GradedResponse(format_reward=1.0, answer_reward=value, reward=value) for value in values]


def test_verdicts_are_in_the_order_of_the_requests_whatever_ended_first():
    texts = ["a", "x", "c", "d"]
    with OverlappedGrading(exact, ["a", "b", "c", "y"]) as grading:
        for index in (2, 0, 3):
            grading.finished(index, texts[index])
        verdicts = grading.verdicts(texts)
    assert [verdict.reward for verdict in verdicts] == [1, 0, 1, 0]


def test_responses_are_graded_while_others_are_awaited():
    graded = threading.Event()

    def grade(responses: Sequence[str], truths: Sequence[str]) -> list[GradedResponse]:
        time.sleep(0.02)
        graded.set()
        return exact(responses, truths)

    with OverlappedGrading(grade, ["a", "b"]) as grading:
        grading.finished(0, "a")
        assert graded.wait(60), "nothing was graded before the last response ended"
        wait_until(lambda: grading.spans, "the end of the first grading")
        sampled = time.perf_counter()
        verdicts = grading.verdicts(["a", "b"])
    assert [verdict.reward for verdict in verdicts] == [1, 1]
    assert grading.seconds_before(sampled) >= 0.02
    (first, second) = grading.spans
    assert first[1] < sampled < second[1]


def test_what_ends_while_the_grader_is_busy_is_graded_together():
    sizes, busy = [], threading.Event()

    def grade(responses: Sequence[str], truths: Sequence[str]) -> list[GradedResponse]:
        sizes.append(len(responses))
        busy.wait(60)
        return exact(responses, truths)

    with OverlappedGrading(grade, ["a"] * 6) as grading:
        grading.finished(0, "a")
        while not sizes:
            time.sleep(0.001)
        for index in range(1, 6):
            grading.finished(index, "a")
        busy.set()
        assert sum(verdict.reward for verdict in grading.verdicts(["a"] * 6)) == 6
    assert sizes == [1, 5]


def test_an_error_of_the_grader_reaches_who_asks_for_the_verdicts():
    def grade(responses: Sequence[str], truths: Sequence[str]) -> list[GradedResponse]:
        raise ImportError("thorough grading needs math-verify")

    with OverlappedGrading(grade, ["a"]) as grading:
        grading.finished(0, "a")
        with pytest.raises(ImportError, match="needs math-verify"):
            grading.verdicts(["a"])


def test_an_error_of_the_sampler_leaves_no_thread():
    def sample() -> None:
        with OverlappedGrading(exact, ["a"]) as grading:
            grading.finished(0, "a")
            raise RuntimeError("the sampler failed")

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="sampler failed"):
        sample()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("decoding", ["plain", "static"])
def test_the_sampler_hands_over_each_response_once_as_it_ends(decoding: str):
    problems = [Problem(id=f"p{i}", question="", prompt="q" * (i + 1), ground_truth="") for i in range(6)]
    requests = build_requests(problems, TOKENIZER, 3, 7, "overlap")
    # Many ids end a text, so that lengths differ; two batches, so that numbers are of requests and not of rows.
    model = tiny_model(TOKENIZER)
    model.config.eos_token_id = list(range(0, 60))
    config = SamplingConfig(max_tokens=24, batch_size=10, decoding=decoding)
    events: list[tuple[str, int, str]] = []
    done = make_sampler(model, TOKENIZER, config).sample(
        requests,
        config,
        on_progress=lambda count, _: events.append(("batch", count, "")),
        on_finished=lambda index, text: events.append(("text", index, text)),
    )
    handed = [(index, text) for kind, index, text in events if kind == "text"]
    assert sorted(handed) == [(index, item.text) for index, item in enumerate(done)]
    first_batch = [index for kind, index, _ in events[: [kind for kind, *_ in events].index("batch")]]
    lengths = [len(done[index].response_ids) for index in first_batch]
    assert len(set(lengths)) > 2
    if decoding == "plain":
        assert lengths == sorted(lengths), "responses of one batch are handed over in the order in which they end"


class Waiting:
    """A real sampler that, half of its responses done, samples no further until some of them are graded."""

    def __init__(self, sampler: Sampler, half: int, graded: threading.Event) -> None:
        self._sampler, self._half, self._graded = sampler, half, graded
        self.in_time = False

    def sample(
        self,
        requests: Sequence[PromptRequest],
        config: SamplingConfig,
        on_progress: Progress | None = None,
        on_finished: Finished | None = None,
    ) -> list[Completion]:
        assert on_finished is not None
        ended: list[int] = []

        def finished(index: int, text: str) -> None:
            on_finished(index, text)
            ended.append(index)
            if len(ended) == self._half:
                self.in_time = self._graded.wait(60)

        return self._sampler.sample(requests, config, on_progress, finished)

    def update_weights(self, model: PreTrainedModel) -> None:
        self._sampler.update_weights(model)


def test_a_rollout_is_graded_while_it_is_sampled():
    """A join right after the start, or a grading that begins when all is sampled, leaves the sampler waiting."""
    graded = threading.Event()

    def grade(responses: Sequence[str], truths: Sequence[str]) -> list[GradedResponse]:
        time.sleep(0.01)
        graded.set()
        return exact(responses, truths)

    model = tiny_model(TOKENIZER)
    model.config.eos_token_id = list(range(0, 30))
    problems = [Problem(id=f"p{i}", question="", prompt="q" * (i + 1), ground_truth="") for i in range(6)]
    config = GRPOConfig(rollout_batch_size=24, train_batch_size=24, group_size=4)
    sampling = SamplingConfig(max_tokens=48, batch_size=12, decoding="plain")
    sampler = Waiting(make_sampler(model, TOKENIZER, sampling), 12, graded)
    metrics = collect_rollout(sampler, TOKENIZER, problems, config, sampling, grade, 0, 0).metrics
    assert sampler.in_time
    assert metrics["time/grade_overlapped"] >= 0.01
    assert metrics["time/generate"] >= metrics["time/grade_overlapped"]


def test_the_time_line_shows_who_worked_when():
    line = Line(ends=[0.1, 0.15, 4.2, 7.9], sampled=8.0, spans=[(1.0, 3.0), (8.0, 10.0)], done=10.0)
    sampling, ends, grading, scale = draw(line, columns=10).splitlines()
    assert sampling == " sampling |########  |"
    assert ends == "     ends |2   1  1  |"
    assert grading == "  grading | ##     ##|"
    assert scale.endswith("10.00 s")
    assert line.beside == 0.5
