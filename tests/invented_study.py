"""A small study with known outcomes, for the tests of figures and report."""

from typing import Any
from xml.etree import ElementTree

from alignment_core.analysis import Analysis, analyze
from alignment_core.evaluation import correct_by_problem, evaluate
from alignment_core.records import Completion, GradedResponse, Problem
from alignment_core.stage_config import Comparison

MARKUP = "</pre></svg><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)> {{ 7 * 7 }}"
PROBLEMS = [Problem(id=f"p{i}", question="3 + 5?", prompt="User: 3 + 5?", ground_truth="8") for i in range(12)]


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


def curve(steps: int, *names: str) -> list[dict[str, Any]]:
    """Points of a run that records these metrics at every step."""
    return [{"step": step, "metrics": {name: 0.5 + step / 100 for name in names}} for step in range(1, steps + 1)]


def svg_texts(svg: str) -> list[str]:
    """Texts of an SVG in order; raises ParseError if it is not well-formed."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
