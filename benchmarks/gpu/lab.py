"""What the phases of the learning proof share: model, problems, sampler, and the evaluation each of them ends in."""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.config import SamplingConfig
from alignment_core.evaluation import correct_by_problem, evaluate, failing_examples
from alignment_core.models import ComputeDtype
from alignment_core.problems import Prepared
from alignment_core.records import ScoredCompletion, write_jsonl
from alignment_core.rewards import grade_batch
from alignment_core.sampling import Sampler, build_requests
from alignment_core.statistics import mcnemar_exact, paired_bootstrap, wilson_interval
from benchmarks.gpu import common


@dataclass
class Lab:
    """What all phases share."""

    arguments: argparse.Namespace
    device: torch.device
    report: common.Report
    clock: common.Clock
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: Prepared
    sampler: Sampler
    sampling: SamplingConfig
    base: dict[str, torch.Tensor] = field(default_factory=dict)
    tuned: dict[str, torch.Tensor] = field(default_factory=dict)
    """Weights after SFT, on the CPU."""
    verdicts: dict[str, dict[str, dict[str, bool]]] = field(default_factory=dict)
    """phase -> decoding -> problem id -> correct."""
    evaluation_seconds: float = 0.0

    @property
    def dtype(self) -> ComputeDtype:
        """Compute type of trainer and sampler."""
        return self.arguments.dtype


def judge(lab: Lab, phase: str) -> None:
    """Evaluate the present weights on the test problems, at every temperature, against zero-shot."""
    started = time.perf_counter()
    lab.sampler.update_weights(lab.model)
    for temperature in lab.arguments.temperatures:
        label = f"T={temperature:g}"
        sampling = lab.sampling.model_copy(update={"temperature": temperature, "batch_size": 512})
        _judge_once(lab, phase, label, sampling)
    lab.evaluation_seconds = max(lab.evaluation_seconds, time.perf_counter() - started)
    lab.report.put("verdicts", lab.verdicts)
    lab.report.put("evaluation_seconds", lab.evaluation_seconds)


def _judge_once(lab: Lab, phase: str, label: str, sampling: SamplingConfig) -> None:
    problems = lab.data.test
    watch = common.Stopwatch(lab.device)
    completions = lab.sampler.sample(build_requests(problems, lab.tokenizer, 1, 0, "evaluation"), sampling)
    generated = watch.lap()
    texts, golds = [item.text for item in completions], [problem.ground_truth for problem in problems]
    grades = grade_batch(texts, golds, "r1_zero")
    graded = watch.lap()
    loose = sum(grade.reward > 0 for grade in grade_batch(texts, golds, "number"))
    verdicts = {key: correct > 0 for key, (_, correct) in correct_by_problem(completions, grades).items()}
    lab.verdicts.setdefault(phase, {})[label] = verdicts
    slim = [item.model_copy(update={"sampler_log_probs": None, "prompt_ids": []}) for item in completions]
    scored = [ScoredCompletion(completion=item, grade=grade) for item, grade in zip(slim, grades, strict=True)]
    write_jsonl(lab.report.path.parent / f"{phase}-test-{label.replace('=', '')}.jsonl", scored)
    row = {
        "name": f"{phase} {label}",
        "kind": "evaluation",
        **evaluate(problems, completions, grades).model_dump(),
        "last_number_accuracy": loose / len(problems),
        "last_number_interval": wilson_interval(loose, len(problems)),
        "generate_seconds": generated.seconds,
        "grade_seconds": graded.seconds,
        "examples": failing_examples(problems, completions, grades, per_kind=3),
    }
    lab.report.add(row | _paired(lab, phase, label))


def _paired(lab: Lab, phase: str, label: str) -> dict[str, object]:
    """Exact McNemar test and bootstrap interval against zero-shot on the same problems."""
    before, after = lab.verdicts.get("zero_shot", {}).get(label), lab.verdicts[phase][label]
    if phase == "zero_shot" or before is None or before.keys() != after.keys():
        return {}
    lost = sum(before[key] and not after[key] for key in after)
    won = sum(after[key] and not before[key] for key in after)
    keys = sorted(after)
    interval = paired_bootstrap([float(after[key]) for key in keys], [float(before[key]) for key in keys], 0)
    return {
        "only_zero_shot": lost,
        "only_this": won,
        "mcnemar_p": mcnemar_exact(lost, won),
        "difference": (won - lost) / len(after),
        "difference_interval": interval,
    }


def copy_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().to("cpu", copy=True) for name, weight in model.named_parameters()}


def put_weights(lab: Lab, weights: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, weight in lab.model.named_parameters():
            weight.copy_(weights[name])
