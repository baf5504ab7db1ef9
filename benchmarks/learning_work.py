"""The work of `benchmarks.learning`: start models by the study's own stages, one training run, one evaluation."""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import TokenSequence
from alignment_core.config import RewardName, SamplingConfig
from alignment_core.dpo import TokenPair, train_dpo
from alignment_core.models import load_model, load_tokenizer
from alignment_core.policy_gradient import train_grpo
from alignment_core.prompts import read_template, render
from alignment_core.records import Completion, GradedResponse, Problem
from alignment_core.rewards import grade_batch
from alignment_core.runs import MemoryRun
from alignment_core.sampling import build_requests, make_sampler
from alignment_core.seeding import derive_seed
from alignment_core.stage_config import FilterStage, PrepareStage, PretrainStage, SFTStage
from alignment_core.stages import filter as filter_stage
from alignment_core.stages import prepare, pretrain, sft
from alignment_core.stages.splits import read_split
from alignment_core.study_config import StudyConfig
from alignment_core.training_config import DPOConfig, GRPOConfig
from alignment_core.validation import make_validator

WATCHED = (
    "reward",
    "format_reward",
    "entropy",
    "grad_norm",
    "ratio_mean",
    "ratio_max",
    "approx_kl",
    "clip_fraction_low",
    "clip_fraction_high",
    "zero_variance_share",
    "groups_sampled",
    "mean_length",
    "truncation_rate",
    "kl_reference",
    "importance_capped",
    "implicit_accuracy",
    "reward_margin",
    "loss",
)
"""train/… metrics kept of every step, where a run has them."""
CURVE = ("accuracy", "format_rate", "entropy", "mean_length", "truncation_rate")
"""eval/… metrics kept of every validation."""
PAIR_PROBLEMS, PAIR_SAMPLES, PAIRS_EACH = 1024, 8, 2
"""DPO: samples of so many train problems, and at most so many pairs of each."""


SFT_EXAMPLES = 128
"""Filtered traces that the SFT start was trained on."""


@dataclass(frozen=True)
class Bench:
    """A study, and the folder its start models lie in."""

    study: StudyConfig
    folder: Path

    def problems(self) -> Path:
        """The splits, by the study's own seed: the same test problems for every run."""
        study = self.study
        config = PrepareStage(data=study.data, template=read_template(study.prompt), seed=study.seed)
        return _once(self.folder / "problems", lambda output: prepare.run(config, {}, output, MemoryRun()))

    def start(self, name: str, seed: int) -> Path:
        """The model folder of `base` or `sft`, each seed's own."""
        made = self._base(seed) if name == "base" else self._sft(seed)
        return made / "model"

    def _base(self, seed: int) -> Path:
        study = self.study
        if study.model.scratch is None or study.data.arithmetic is None or study.plain_prompt is None:
            raise ValueError("the preset must pretrain its model from scratch on arithmetic, as tiny does")
        config = PretrainStage(
            model=study.model.scratch,
            arithmetic=study.data.arithmetic,
            template=read_template(study.prompt),
            plain_template=read_template(study.plain_prompt),
            seed=seed,
        )
        return _once(self.folder / f"base-{seed}", lambda output: pretrain.run(config, {}, output, MemoryRun()))

    def _sft(self, seed: int) -> Path:
        study, problems = self.study, self.problems()
        kept = FilterStage(reward=study.evaluation.reward)
        inputs = {"problems": problems}
        traces = _once(self.folder / "traces", lambda out: filter_stage.run(kept, inputs, out, MemoryRun()))
        config = SFTStage(
            sft=study.sft.model_copy(update={"validation_problems": 0}),
            sampling=study.sampling,
            reward=study.evaluation.reward,
            size=SFT_EXAMPLES,
            subset_seed=study.seed,
            seed=seed,
        )
        inputs = {"model": self._base(seed), "examples": traces, "problems": problems}
        return _once(self.folder / f"sft-{seed}", lambda output: sft.run(config, inputs, output, MemoryRun()))


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made where it is not there yet; a cut-off attempt leaves none of that name."""
    if not folder.is_dir():
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        make(part)
        part.rename(folder)
    return folder


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a model folder."""
    return load_model(folder), load_tokenizer(folder)


def sample_and_grade(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    sampling: SamplingConfig,
    reward: RewardName,
    samples: int,
    *seed_parts: int | str,
) -> tuple[list[Completion], list[GradedResponse]]:
    """`samples` completions of each problem, problem by problem, and their verdicts."""
    requests = build_requests(problems, tokenizer, samples, *seed_parts)
    completions = make_sampler(model, tokenizer, sampling).sample(requests, sampling)
    truths = [problem.ground_truth for problem in problems for _ in range(samples)]
    return completions, grade_batch([item.text for item in completions], truths, reward)


def outcomes_of(bench: Bench, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """One sample of each test problem as a digit: 0 no format, 1 formatted and wrong, 2 right.

    The draws' seeds are the same for every model, so that two outcomes of a problem can be compared.
    """
    problems = read_split(bench.problems(), "test")
    study = bench.study
    _, grades = sample_and_grade(
        model, tokenizer, problems, study.sampling, study.evaluation.reward, 1, study.seed, "test"
    )
    return "".join("2" if g.reward > 0 else "1" if g.format_reward > 0 else "0" for g in grades)


def plain_accuracy(bench: Bench, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of the test problems the model answers when asked plainly, at the same temperature, format aside."""
    study = bench.study
    template = read_template(study.plain_prompt or "plain")
    asked = [
        one.model_copy(update={"prompt": render(template, one.question)})
        for one in read_split(bench.problems(), "test")
    ]
    sampling = study.sampling.model_copy(update={"stop": ("\nQuestion:",)})
    _, grades = sample_and_grade(model, tokenizer, asked, sampling, "number", 1, study.seed, "plain")
    return sum(grade.reward > 0 for grade in grades) / len(grades)


def train(bench: Bench, start: str, seed: int, config: GRPOConfig | DPOConfig) -> dict[str, Any]:
    """One run from a start model: its curve, its steps, and the test problems at its end."""
    started = time.perf_counter()
    model, tokenizer = load(bench.start(start, seed))
    study, run, reward = bench.study, MemoryRun(), bench.study.evaluation.reward
    sampler = make_sampler(model, tokenizer, study.sampling)
    validate = make_validator(
        read_split(bench.problems(), "dev"),
        config.validation_problems,
        tokenizer,
        study.sampling,
        reward,
        run,
        seed,
        sampler=sampler,
    )
    problems = read_split(bench.problems(), "train")
    if isinstance(config, GRPOConfig):
        train_grpo(
            model, tokenizer, problems, config, study.sampling, reward, run, seed, validate=validate, sampler=sampler
        )
    else:
        pairs = mined_pairs(bench, model, tokenizer, problems, seed)
        train_dpo(model, tokenizer, pairs, config, run, seed, validate=validate)
    seconds = time.perf_counter() - started
    return {"test": outcomes_of(bench, model, tokenizer), **record(run), "seconds": round(seconds, 1)}


def record(run: MemoryRun) -> dict[str, Any]:
    """A run's points as columns: `curve` at its validations, `steps` at every step, of what varies."""
    validated = [(step, metrics) for step, metrics in run.points if "eval/accuracy" in metrics]
    curve: dict[str, Any] = {"step": [step for step, _ in validated]}
    curve |= {
        name: [_short(metrics[f"eval/{name}"]) for _, metrics in validated if f"eval/{name}" in metrics]
        for name in CURVE
    }
    trained = [metrics for _, metrics in run.points if "train/loss" in metrics]
    steps = {
        name: [_short(metrics[f"train/{name}"]) for metrics in trained]
        for name in WATCHED
        if trained and all(f"train/{name}" in metrics for metrics in trained)
    }
    varying = {name: values for name, values in steps.items() if len(set(values)) > 1}
    return {"curve": curve, "steps": varying}


def _short(value: float) -> float:
    """Four significant digits: enough for a figure, and a fraction of the file."""
    return float(f"{value:.4g}") if math.isfinite(value) else value


def mined_pairs(
    bench: Bench, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], seed: int
) -> list[TokenPair]:
    """Right against wrong samples of one problem, by their own token ids; the k-th right one meets the k-th wrong."""
    asked = sorted(problems, key=lambda problem: derive_seed(seed, "pairs", problem.id))[:PAIR_PROBLEMS]
    study = bench.study
    completions, grades = sample_and_grade(
        model, tokenizer, asked, study.sampling, study.evaluation.reward, PAIR_SAMPLES, seed, "pairs"
    )
    pairs = []
    for place in range(0, len(completions), PAIR_SAMPLES):
        group = range(place, place + PAIR_SAMPLES)
        right = [_sequence(completions[row]) for row in group if grades[row].reward > 0]
        wrong = [_sequence(completions[row]) for row in group if grades[row].reward <= 0]
        pairs += [TokenPair(*pair) for pair in list(zip(right, wrong, strict=False))[:PAIRS_EACH]]
    return pairs


def _sequence(completion: Completion) -> TokenSequence:
    return TokenSequence(completion.prompt_ids, completion.response_ids)
