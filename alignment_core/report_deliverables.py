"""The experiments of the CS336 alignment assignment, each answered by this study or by the one that would answer it.

Whether this study answers one is read off what its experiments vary, not off its name.
"""

from collections.abc import Callable
from typing import NamedTuple

from alignment_core.analysis import ROUND
from alignment_core.report_answers import ExperimentAnswer, conclusions
from alignment_core.report_checks import (
    Check,
    at_least,
    data_set_sizes,
    expert_rounds,
    off_policy_loop,
    off_policy_sweep,
    rewards_of_prompts,
    told_values,
    training_loop,
)
from alignment_core.report_data import ReportData
from alignment_core.report_leaderboard import budgeted, leaderboard_checks
from alignment_core.report_settings import (
    BATCH,
    EPOCHS,
    LOSS,
    RATE,
    STEPS,
    Answers,
    all_values,
    updates_of,
    values_of,
)
from alignment_core.report_text import percent
from alignment_core.run_curves import is_number

LENGTHS = {
    "train/mean_length": ("responses", " tokens"),
    "train/mean_length_correct": ("right ones", " tokens"),
    "train/mean_length_incorrect": ("wrong ones", " tokens"),
    "train/grad_norm": ("gradient norm", ""),
}
"""Metric -> what it is called, and its unit."""


class Deliverable(NamedTuple):
    """One problem of the assignment."""

    name: str
    asks: str
    studies: tuple[str, ...]
    """The shipped studies that answer it."""
    find: Callable[[ReportData, Answers], Answers]
    """The experiments of a study that answer it."""
    check: Callable[[ReportData, Answers], list[Check]]
    tell: Callable[[ReportData, ExperimentAnswer], list[str]] = lambda data, answer: _told(answer)
    """What it says of one experiment."""


class DeliverableRow(NamedTuple):
    """A deliverable as the page shows it."""

    name: str
    asks: str
    studies: tuple[str, ...]
    sentences: list[str]
    """Its numbers; empty where this study does not answer it."""
    checks: list[Check]
    anchors: list[tuple[str, str]]
    """(id, words) of the places on the page with its figures."""


def deliverable_rows(data: ReportData, answers: Answers) -> list[DeliverableRow]:
    """Every deliverable, in the assignment's order."""
    rows = [_baseline(data), _generations(data)]
    for one in DELIVERABLES:
        found = [answer for answer in one.find(data, answers) if answer.done]
        sentences = [f"{answer.outline.name}: {' '.join(one.tell(data, answer))}" for answer in found]
        anchors = [place for answer in found for place in _places(data, answer)]
        checks = one.check(data, found) if found else []
        rows.append(DeliverableRow(one.name, one.asks, one.studies, sentences, checks, anchors))
    return rows


def _baseline(data: ReportData) -> DeliverableRow:
    kinds = {"1,1": "formatted and right", "1,0": "formatted and wrong", "0,0": "unformatted"}
    rows = [row for row in data.analysis.evaluations if row.name in data.analysis.zero_shot]
    sentences = [
        f"{row.name}: {percent(row.report.accuracy)} % of {row.report.n:,} "
        f"({percent(row.report.accuracy_low)} to {percent(row.report.accuracy_high)}): "
        + ", ".join(f"{row.report.categories.get(kind, 0):,} {words}" for kind, words in kinds.items())
        + "."
        for row in rows
    ]
    checks = []
    if rows:
        shown = data.examples.get(rows[0].name, [])
        for kind in ("1,0", "0,0"):
            count, there = sum(row.get("kind") == kind for row in shown), rows[0].report.categories.get(kind, 0)
            checks.append(Check(f"{count} of the {there:,} {kinds[kind]} to look at", count >= min(10, there)))
    asks = "Zero-shot accuracy, the three categories of format and answer, examples of each failing one."
    return DeliverableRow("math_baseline", asks, ("zero-shot",), sentences, checks, [("failures", "categories")])


def _generations(data: ReportData) -> DeliverableRow:
    count = sum(map(len, [*data.rollouts.values(), *data.validations.values()]))
    sentences = (
        [f"{count:,} generations of training and validation, with rewards, length and entropy."] if count else []
    )
    asks = "Generations logged during training: prompt, response, truth, rewards, entropy, lengths by right and wrong."
    return DeliverableRow("log_generations", asks, ("grpo-baselines",), sentences, [], [("samples", "sample browser")])


def _places(data: ReportData, answer: ExperimentAnswer) -> list[tuple[str, str]]:
    """Where the page shows an experiment: its table and figures, and its curves if it has some."""
    name = answer.outline.name
    members = {row.name for member in answer.done for row in member.rows}
    drawn = any(points and ROUND.sub("", run) in members for run, points in data.curves.items())
    return [(answer.anchor, name)] + ([(f"curves-{answer.anchor}", f"{name}: curves")] if drawn else [])


def _reached(answer: ExperimentAnswer) -> str:
    """The range its members reached; which is better is for the tests to say."""
    reached = [member.accuracy or 0.0 for member in answer.done]
    if len(reached) == 1:
        return f"{percent(reached[0])} % accuracy."
    return f"{len(reached)} members, {percent(min(reached))} to {percent(max(reached))} % accuracy."


def _varying(method: str, *names: str) -> Callable[[ReportData, Answers], Answers]:
    """Finds experiments of a method whose evaluated members differ in one of the settings."""

    def find(data: ReportData, answers: Answers) -> Answers:
        return [one for one in _of(method, answers) if any(len(values_of(data, one, name)) > 1 for name in names)]

    return find


def _holding(name: str, *values: str) -> Callable[[ReportData, Answers], Answers]:
    """Finds GRPO experiments whose evaluated members have all of these values."""

    def find(data: ReportData, answers: Answers) -> Answers:
        return [one for one in _of("grpo", answers) if set(values) <= set(values_of(data, one, name))]

    return find


def _of(method: str, answers: Answers) -> Answers:
    return [one for one in answers if one.outline.method == method]


def _prompts(data: ReportData, answers: Answers) -> Answers:
    """GRPO under at least two prompts, in one experiment or else in several."""
    if varying := _varying("grpo", "prompt")(data, answers):
        return varying
    found = [one for one in _of("grpo", answers) if one.done]
    return found if len(all_values(data, found, "prompt")) > 1 else []


def _off_policy(data: ReportData, answers: Answers) -> Answers:
    """Experiments that vary epochs or train batch, and those that go on from them or stand beside them as they are.

    A focused run varies nothing within itself: it carries the winner of a sweep, or is the on-policy run of the same
    start. An ablation that carries a winner and varies something else answers another question.
    """
    found = _varying("grpo", EPOCHS, BATCH)(data, answers)
    names, starts = {one.outline.name for one in found}, {one.outline.start for one in found}
    plain = [
        one
        for one in _of("grpo", answers)
        if (names & set(one.outline.carry) and one.columns.keys() <= {STEPS, RATE})
        or (not one.outline.carry and not one.columns and one.outline.start in starts)
    ]
    return [one for one in answers if one in found or one in plain]


def _updating_often(data: ReportData, answers: Answers) -> Answers:
    """GRPO with more than one update per rollout batch."""
    return [one for one in _of("grpo", answers) if max(updates_of(data, one), default=1) > 1]


def _told(answer: ExperimentAnswer) -> list[str]:
    return [_reached(answer), *conclusions(answer)]


def _lengths(data: ReportData, answer: ExperimentAnswer) -> list[str]:
    """What a normalization does to lengths and gradients, averaged over the runs' steps."""
    told = []
    for member in answer.done:
        points = [point.get("metrics", {}) for row in member.rows for point in data.curves.get(row.name, [])]
        means = []
        for metric, (words, unit) in LENGTHS.items():
            known = [point[metric] for point in points if is_number(point.get(metric))]
            means += [f"{words} {sum(known) / len(known):.3g}{unit}"] if known else []
        told.append(f"{member.label}: {', '.join(means) or 'its training recorded no lengths'}.")
    return ["Means over training:", *told]


DELIVERABLES = (
    Deliverable(
        "sft_experiment",
        "SFT over data set sizes, learning rate and batch size tuned; the same on traces with right answers only.",
        ("sft-size", "sft-lr-batch"),
        _varying("sft", "examples.size", "examples.variant", "sft.optimizer.learning_rate", "sft.batch_size"),
        data_set_sizes,
    ),
    Deliverable(
        "expert_iteration_experiment",
        "Expert Iteration over questions per step, samples and epochs; entropy over training.",
        ("expert-iteration",),
        lambda data, answers: _of("expert_iteration", answers),
        expert_rounds,
    ),
    Deliverable(
        "grpo_train_loop",
        "GRPO with its validation rewards, and rollouts over time.",
        ("grpo-baselines",),
        lambda data, answers: _of("grpo", answers),
        training_loop,
    ),
    Deliverable(
        "grpo_learning_rate",
        "GRPO over learning rates.",
        ("grpo-learning-rate",),
        _varying("grpo", RATE),
        at_least(0.25),
    ),
    Deliverable(
        "grpo_baselines",
        "GRPO without a baseline and with the group's mean as one.",
        ("grpo-baselines",),
        _holding(LOSS, "no_baseline", "reinforce_with_baseline"),
        told_values(LOSS),
    ),
    Deliverable(
        "think_about_length_normalization",
        "What the two normalizations do, in words: an argument no run can make; these are the numbers it may rest on.",
        ("grpo-length-normalization",),
        _varying("grpo", "grpo.length_normalization"),
        lambda data, answers: [],
        _lengths,
    ),
    Deliverable(
        "grpo_length_normalization",
        "The mean over a sequence's tokens against the sum over a constant.",
        ("grpo-length-normalization",),
        _varying("grpo", "grpo.length_normalization"),
        told_values("grpo.length_normalization"),
    ),
    Deliverable(
        "grpo_group_standard_deviation",
        "Advantages divided by the standard deviation of their group, and not.",
        ("grpo-std-normalization",),
        _varying("grpo", "grpo.use_std_normalization"),
        told_values("grpo.use_std_normalization"),
    ),
    Deliverable(
        "grpo_off_policy",
        "Several updates per rollout batch against log-probs taken once before them, under GRPO-Clip.",
        ("grpo-off-policy", "grpo-clip"),
        _updating_often,
        off_policy_loop,
    ),
    Deliverable(
        "grpo_off_policy_sweep",
        "Several epochs and updates per rollout batch, against steps and wall-clock time, with entropy.",
        ("grpo-off-policy",),
        _off_policy,
        off_policy_sweep,
    ),
    Deliverable(
        "grpo_off_policy_clip_ablation",
        "Off-policy updates with and without the clip.",
        ("grpo-clip",),
        _holding(LOSS, "grpo_clip", "grpo_no_clip"),
        told_values(LOSS),
    ),
    Deliverable(
        "grpo_prompt_ablation",
        "The reasoning prompt against the bare question, each under its own reward.",
        ("prompt",),
        _prompts,
        rewards_of_prompts,
    ),
    Deliverable(
        "leaderboard",
        "The best accuracy within four hours, evaluation included.",
        ("leaderboard",),
        budgeted,
        leaderboard_checks,
    ),
)
"""Every experiment beyond the baseline, in the assignment's order."""
