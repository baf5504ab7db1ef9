"""Grading beside sampling, on a time line: `python -m benchmarks.overlap [--responses 128] [--repetitions 3]`.

A random model samples responses of geometric length, as in `benchmarks.sampling`. In place of each, ANSWERS of the
labelled answer pairs are graded, thoroughly, in one grading child, as a GRPO step does it. Sampling, grading
and both together take turns; drawn is the last turn of both. One CPU thread samples, the child takes another core.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from alignment_core.config import SamplingConfig
from alignment_core.grading_pool import close_all
from alignment_core.overlap import OverlappedGrading
from alignment_core.records import GradedResponse
from alignment_core.rewards import grade_batch
from alignment_core.sampling import PromptRequest, Sampler, make_sampler
from benchmarks.answer_pairs import read_pairs
from benchmarks.training_work import Work, make_model, make_prompts, make_tokenizer

ENDING, LIMIT, COLUMNS, ANSWERS = 48, 192, 100, 4
"""One id in ENDING ends a response of at most LIMIT tokens; the time line has so many columns."""


@dataclass
class Line:
    """One rollout batch on the clock, seconds since it began."""

    ends: list[float]
    """Of each response."""
    sampled: float
    """When the sampler returned."""
    spans: list[tuple[float, float]]
    """Of grading."""
    done: float
    """When the last verdict was there."""

    @property
    def beside(self) -> float:
        """Share of the grading time that lay before the sampler's return."""
        total = sum(end - start for start, end in self.spans)
        return sum(max(min(end, self.sampled) - start, 0.0) for start, end in self.spans) / total if total else 0.0


def main() -> None:
    """Measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sampler, config, requests = prepare(options.responses)
    graded(range(options.responses))  # the child starts
    turns: list[tuple[float, float, Line]] = []
    for _ in range(options.repetitions):
        alone = seconds(lambda: sampler.sample(requests, config))
        after = seconds(lambda: graded(range(options.responses)))
        turns.append((alone, after, together(sampler, config, requests)))
    show(turns, config.batch_size)
    close_all()


def prepare(responses: int) -> tuple[Sampler, SamplingConfig, list[PromptRequest]]:
    """A sampler over a random model, and what it is asked."""
    work = Work(vocab_size=2048, problems=max(responses // 4, 1), group_size=4, longest_prompt=96)
    model, tokenizer = make_model(work, eos=list(range(0, work.vocab_size, ENDING))).eval(), make_tokenizer(work)
    config = SamplingConfig(max_tokens=LIMIT, stop=(), batch_size=max(responses // 2, 1))
    prompts = make_prompts(work)
    requests = [PromptRequest(f"p{n}", n % 4, prompts[n // 4 % len(prompts)], n) for n in range(responses)]
    return make_sampler(model, tokenizer, config), config, requests


def graded(numbers: Sequence[int]) -> list[GradedResponse]:
    """Thorough verdicts in the grading child: for each number the last one on its ANSWERS pairs."""
    pairs = read_pairs()
    chosen = [pairs[(number * ANSWERS + offset) % len(pairs)] for number in numbers for offset in range(ANSWERS)]
    responses = [f" so </think> <answer> {pair.answer} </answer>" for pair in chosen]
    verdicts = grade_batch(responses, [pair.gold for pair in chosen], mode="thorough", workers=1)
    return verdicts[ANSWERS - 1 :: ANSWERS]


def together(sampler: Sampler, config: SamplingConfig, requests: list[PromptRequest]) -> Line:
    """One rollout batch, graded as it is in training: while it is sampled."""
    ends: list[float] = []
    began = time.perf_counter()
    with OverlappedGrading(lambda _, truths: graded([int(truth) for truth in truths]), truths_of(requests)) as grading:

        def finished(index: int, text: str) -> None:
            ends.append(time.perf_counter() - began)
            grading.finished(index, text)

        completions = sampler.sample(requests, config, on_finished=finished)
        sampled = time.perf_counter() - began
        grading.verdicts([item.text for item in completions])
    done = time.perf_counter() - began
    return Line(ends, sampled, [(start - began, end - began) for start, end in grading.spans], done)


def truths_of(requests: Sequence[PromptRequest]) -> list[str]:
    """In place of a gold answer, the number of the pair."""
    return [str(number) for number in range(len(requests))]


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def show(turns: Sequence[tuple[float, float, Line]], batch: int) -> None:
    """Medians, and the last turn drawn."""
    sampling, grading = (statistics.median(turn[which] for turn in turns) for which in (0, 1))
    both = statistics.median(turn[2].done for turn in turns)
    gains = sorted((turn[0] + turn[1]) / turn[2].done for turn in turns)
    line = turns[-1][2]
    print(draw(line))
    print(
        f"{len(line.ends)} responses in batches of {batch}: sampling alone {sampling:.2f} s, grading alone "
        f"{grading:.2f} s, together {both:.2f} s; one after the other takes {statistics.median(gains):.2f} times as "
        f"long ({gains[0]:.2f} to {gains[-1]:.2f}); {statistics.median(turn[2].beside for turn in turns):.0%} of the "
        f"grading time lies before the last response's end, {line.done - line.sampled:.3f} s are left after it"
    )


def draw(line: Line, columns: int = COLUMNS) -> str:
    """The time line: a column is `line.done / columns` seconds."""
    width = line.done / columns
    counts = [sum(int(min(end / width, columns - 1)) == column for end in line.ends) for column in range(columns)]
    rows = {
        "sampling": [column * width < line.sampled for column in range(columns)],
        "grading": [
            any(start < (column + 1) * width and end > column * width for start, end in line.spans)
            for column in range(columns)
        ],
    }
    bars = {name: "".join("#" if on else " " for on in row) for name, row in rows.items()}
    ends = "".join(" " if not count else str(count) if count < 10 else "+" for count in counts)
    shown = (("sampling", bars["sampling"]), ("ends", ends), ("grading", bars["grading"]))
    return "\n".join(f"{name:>9} |{row}|" for name, row in shown) + f"\n{'':>10} 0{line.done:>{columns - 1}.2f} s"


if __name__ == "__main__":
    main()
