"""A small study with known outcomes, for the tests of figures and report."""

import math
from typing import Any
from xml.etree import ElementTree

from alignment_core.analysis import Analysis, analyze
from alignment_core.choosing import Candidate, Choice
from alignment_core.evaluation import correct_by_problem, evaluate, failing_examples
from alignment_core.records import Completion, GradedResponse, Problem
from alignment_core.report_data import (
    AtKRow,
    Interval,
    KeyLink,
    Prompt,
    PublishedRow,
    ReportData,
    SettingVerdict,
    StageRow,
)
from alignment_core.stage_config import Comparison, ExperimentOutline, MemberOutline

MARKUP = "</pre></svg><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)> {{ 7 * 7 }}"
HOSTILE = f"{MARKUP} <!-- <script> \u202e\u200b\x07\ud800 ' \" `"
PROBLEMS = [Problem(id=f"p{i}", question="3 + 5?", prompt="User: 3 + 5?", ground_truth="8") for i in range(12)]
RATES = (2e-5, 2e-4, 1e-3)
SIZES = (64, 128, 256, 512, 1024)


def graded(right: int, formatted: int) -> tuple[list[Completion], list[GradedResponse]]:
    """The first `right` answers are right, the first `formatted` formatted."""
    completions = [
        Completion(
            problem_id=problem.id,
            sample_index=0,
            prompt_ids=[0],
            response_ids=[1] * 5,
            text=" 8 </think> <answer> 8 </answer>" if i < formatted else MARKUP,
            finish_reason="stop",
            mean_entropy=0.5,
        )
        for i, problem in enumerate(PROBLEMS)
    ]
    grades = [
        GradedResponse(
            format_reward=i < formatted,
            answer_reward=i < right,
            reward=i < right,
            extracted="8" if i < right else "9" if i < formatted else None,
        )
        for i in range(len(PROBLEMS))
    ]
    return completions, grades


def analysis_of(*runs: tuple[Comparison, int, int]) -> Analysis:
    """Analysis of (evaluation, right answers, formatted answers)."""
    answers = {run.name: graded(right, formatted) for run, right, formatted in runs}
    return analyze(
        [run for run, _, _ in runs],
        {name: evaluate(PROBLEMS, *pair) for name, pair in answers.items()},
        {name: correct_by_problem(*pair) for name, pair in answers.items()},
        resamples=200,
    )


def study() -> Analysis:
    """One of everything: baselines, two seeds of SFT, two Expert Iteration rounds, GRPO."""
    return analysis_of(
        (Comparison(name="zero-shot", method="zero-shot"), 1, 2),
        (Comparison(name="plain", method="plain"), 7, 12),
        (Comparison(name="sft/128/raw/seed0", method="sft", start="zero-shot", seed=0, size=128, variant="raw"), 6, 9),
        (Comparison(name="sft/128/raw/seed1", method="sft", start="zero-shot", seed=1, size=128, variant="raw"), 7, 9),
        (Comparison(name="ei/base/seed0/round-01", method="ei", start="zero-shot", seed=0, step=1), 4, 8),
        (Comparison(name="ei/base/seed0", method="ei", start="zero-shot", seed=0, step=2), 9, 12),
        (Comparison(name="grpo/base/seed0", method="grpo", start="zero-shot", seed=0), 11, 12),
    )


def sweep_runs() -> list[tuple[Comparison, int, int]]:
    """Baselines, GRPO over three learning rates and three seeds (one seed of the last is missing), SFT over ten."""
    runs = [
        (Comparison(name="zero-shot", method="zero-shot"), 1, 2),
        (Comparison(name="plain", method="plain"), 7, 12),
    ]
    for place, rate in enumerate(RATES):
        for seed in range(2 if place == 2 else 3):
            runs.append(
                (_member(f"grpo/lr/{rate}", "grpo", seed, "grpo/lr", {RATE: rate}), 4 + 3 * place + seed // 2, 12)
            )
    for size in SIZES:
        for variant in ("raw", "filtered"):
            varied = {"examples.size": size, "examples.variant": variant}
            group = f"sft/{size}/{variant}"
            run = _member(group, "sft", 0, "sft", varied, size=size, variant=variant)
            runs.append((run, 2 + SIZES.index(size), 9))
    return runs


RATE = "grpo.optimizer.learning_rate"


def _member(group: str, method: str, seed: int, experiment: str, varied: dict[str, Any], **more: Any) -> Comparison:
    fields = {"name": f"{group}/seed{seed}", "method": method, "start": "zero-shot", "seed": seed}
    return Comparison.model_validate(fields | {"experiment": experiment, "varied": varied} | more)


def outlines() -> list[ExperimentOutline]:
    """What `sweep_runs` set out to do, and an experiment of which nothing ran."""
    rates = [MemberOutline(group=f"grpo/lr/{rate}", varied={RATE: rate}) for rate in RATES]
    sizes = [
        MemberOutline(group=f"sft/{size}/{variant}", varied={"examples.size": size, "examples.variant": variant})
        for size in SIZES
        for variant in ("raw", "filtered")
    ]
    never = MemberOutline(group="grpo/never", varied={})
    return [
        ExperimentOutline(
            name="grpo/lr",
            method="grpo",
            rule="best",
            members=tuple(rates),
            seeds=(0, 1, 2),
            settings={"grpo.group_size": 8},
        ),
        ExperimentOutline(name="sft", method="sft", members=tuple(sizes), seeds=(0,)),
        ExperimentOutline(name="grpo/never", method="grpo", members=(never,), seeds=(0,), asked=False),
    ]


def choice(low: float = 0.05) -> Choice:
    """The learning rate taken on; `low` above 0 makes it clear."""
    candidates = [
        Candidate(group=f"grpo/lr/{rate}", accuracy=0.4 + 0.1 * i, low=low * i, high=0.3 * i)
        for i, rate in enumerate(RATES)
    ]
    return Choice(winner="grpo/lr/0.001", rule="best", problems=48, candidates=candidates)


def grpo_curve(steps: int, slope: float, seed: int, broken: bool = False) -> list[dict[str, Any]]:
    """Points of an invented GRPO run; of a broken one the loss ends as NaN."""
    points: list[dict[str, Any]] = [{"step": 0, "metrics": {"eval/accuracy": 0.05, "eval/format_rate": 0.1}}]
    for step in range(1, steps + 1):
        wave = 0.03 * math.sin(step + seed)
        reward = min(1.0, max(0.0, 0.05 + slope * step + wave))
        metrics = {
            "train/reward": reward, "train/format_reward": min(1.0, reward + 0.2), "train/answer_reward": reward,
            "train/loss": float("nan") if broken and step > steps - 3 else -0.01 + wave / 10,
            "train/entropy": 1.2 * math.exp(-step / 20) + 0.2, "train/grad_norm": 0.4 + wave,
            "train/mean_length": 40.0 + 10 * wave,
            "train/mean_length_correct": 35.0, "train/mean_length_incorrect": 48.0,
            "train/clip_fraction_low": 0.0, "train/clip_fraction_high": 0.0, "train/approx_kl": 0.0,
            "train/truncation_rate": 0.1, "train/tokens": 2_500.0, "train/tokens_sampled": 2_500.0, "time/step": 1.5,
        }  # fmt: skip
        if step % 5 == 0:
            metrics |= {"eval/accuracy": reward, "eval/format_rate": min(1.0, reward + 0.1), "eval/entropy": 0.5}
        points.append({"step": step, "metrics": metrics})
    return points


def sweep(**more: Any) -> ReportData:
    """A page's data for `sweep_runs`, with one of everything a page can show, hostile text included."""
    runs = sweep_runs()
    grpo = [run for run, _, _ in runs if run.method == "grpo"]
    completions, grades = graded(1, 2)
    rollouts = [
        {"step": step, "problem_id": f"p{step}", "prompt": "User: 3 + 5?", "reward": float(step > 20), "length": 5,
         "response": HOSTILE if step == 20 else f" 3 + 5 is {step} </think> <answer> {step} </answer>"}
        for step in range(0, 41, 4)
    ]  # fmt: skip
    fields: dict[str, Any] = {
        "title": "Study sweep",
        "question": "Which learning rate makes GRPO learn fast?",
        "description": "Invented numbers.",
        "analysis": analysis_of(*runs),
        "evaluations": [run for run, _, _ in runs],
        "experiments": outlines(),
        "choices": {"grpo/lr": choice()},
        "intervals": {
            f"grpo/lr/{rate}": Interval(low=0.2 * i + 0.1, high=0.2 * i + 0.5) for i, rate in enumerate(RATES)
        },
        "setting_comparisons": [
            verdict("grpo/lr/0.0002", "grpo/lr/2e-05", 0.25, "better"),
            verdict("grpo/lr/0.001", "grpo/lr/2e-05", 0.02, "cannot tell"),
            verdict("grpo/lr/2e-05", "zero-shot", 0.2, "better"),
        ],
        "at_k": [AtKRow(evaluation="zero-shot", kind="pass", k=4, value=0.3, low=0.2, high=0.42)],
        "published": published(),
        "leakage": {"exact_matches": 0, "shares": {"dev": 0.25}, "removed": [{"id": "p7", "why": "same text"}]},
        "filter_report": {"kept": 1311, "dropped": {"wrong_answer": 402}},
        "curves": {
            run.name: grpo_curve(
                40, 0.004 * (1 + RATES.index(run.varied[RATE])), run.seed or 0, run.name == "grpo/lr/0.001/seed1"
            )
            for run in grpo
        }
        | {run.name: curve(12, "train/loss", "eval/accuracy") for run, _, _ in runs if run.method == "sft"},
        "rollouts": {run.name: rollouts for run in grpo},
        "examples": {"zero-shot": failing_examples(PROBLEMS, completions, grades)},
        "solved": {"zero-shot": [{"problem_id": "p0", "response": " 8 </think> <answer> 8 </answer>", "tokens": 5}]},
        "stages": stage_rows(),
        "stands_on": {"grpo/lr/2e-05/seed0": [KeyLink(what="grade", stage="grade", key="abcdef0123456789")]},
        "prompts": [Prompt(label="prepare", name="tiny", text="User: {question}\nAssistant:", sha256="c7" * 32)],
        "sizes": {"train": 2048, "dev": 100, "test": 12},
        "versions": {"git": "3fa8c1d2", "torch": "2.13.0", "host": "here"},
        "settings": {"seeds": "[0, 1, 2]", "seed": "0", "grpo.n_grpo_steps": "40", "sampling.temperature": "1.0"},
        "command": "alignflow run tiny/grpo-learning-rate --set 'seeds=[0, 1, 2]'",
    }  # fmt: skip
    return ReportData.model_validate(fields | more)


def verdict(name: str, against: str, difference: float, said: str) -> SettingVerdict:
    """One comparison of settings."""
    bounds = {"low": difference - 0.1, "high": difference + 0.1}
    return SettingVerdict.model_validate(
        {
            "name": name,
            "against": against,
            "difference": difference,
            **bounds,
            "p_holm": 0.031,
            "verdict": said,
            "seeds": [0, 1, 2],
        }
    )


def published() -> list[PublishedRow]:
    """One number that may stand beside ours, and one that may not."""
    fields = {
        "evaluation": "zero-shot",
        "source": "owner/repository",
        "method": "zero-shot",
        "evaluation_set": "GSM8K test",
    }
    return [
        PublishedRow.model_validate({**fields, "accuracy": 2.4, "comparable": True}),
        PublishedRow.model_validate(
            {
                **fields,
                "accuracy": 68.75,
                "comparable": False,
                "note": "704 of 1,024",
                "differs": ["template (c7d73c here, 562137 there)"],
            }
        ),
    ]


def stage_rows() -> list[StageRow]:
    """Stages of two runs of the study: what all share, and one experiment's."""
    first: dict[str, Any] = {"host": "here", "study": "sweep", "run": "a"}
    return [
        StageRow(label="pretrain", stage="pretrain", key="abcdef0123456789abcdef", seconds=74.0, started=0.0, **first),
        StageRow(
            label="grpo/lr/2e-05/seed0",
            stage="grpo",
            key="0123456789abcdef",
            seconds=60.0,
            owner="grpo/lr",
            trained_tokens=100_000.0,
            sampled_tokens=120_000.0,
            resumed_from=20,
            **{**first, "started": 90.0, "run": "b"},
        ),
        StageRow(
            label="zero-shot: sample",
            stage="sample",
            key="fedcba",
            seconds=6.0,
            sampled_tokens=240.0,
            started=80.0,
            **first,
        ),
    ]


def curve(steps: int, *names: str) -> list[dict[str, Any]]:
    """Points of a run that records these metrics at every step."""
    return [{"step": step, "metrics": {name: 0.5 + step / 100 for name in names}} for step in range(1, steps + 1)]


def svg_texts(svg: str) -> list[str]:
    """Texts of an SVG in order; raises ParseError if it is not well-formed."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
