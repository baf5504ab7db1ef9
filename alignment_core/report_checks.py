"""What each deliverable of the assignment asks of a study, checked against what its members were and reached."""

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import NamedTuple

from alignment_core.analysis import ROUND, EvaluationRow
from alignment_core.figures import rounds_figure
from alignment_core.report_answers import MemberAnswer
from alignment_core.report_data import ReportData, Row
from alignment_core.report_settings import LOSS, STEPS, Answers, all_values, member_value, updates_of
from alignment_core.report_text import listed, number, setting_name
from alignment_core.run_curves import is_number

REWARDS = {
    "reasoning": {"r1_zero", "countdown"},
    "r1_zero": {"r1_zero", "countdown"},
    "tiny": {"r1_zero", "countdown"},
    "question_only": {"question_only"},
    "plain": {"number"},
}
"""Prompt template, by name without ending -> the rewards that want what it asks for."""


class Check(NamedTuple):
    """One thing a deliverable asks for."""

    words: str
    met: bool | None
    """None where the numbers cannot tell."""


def at_least(share: float) -> Callable[[ReportData, Answers], list[Check]]:
    """Whether some member's accuracy is that high: told only where its interval agrees."""

    def check(data: ReportData, answers: Answers) -> list[Check]:
        members = [member for answer in answers for member in answer.done]
        return [Check(f"a member of at least {share:.0%} accuracy (asked of MATH)", _surely(members, share))]

    return check


def _surely(members: Sequence[MemberAnswer], share: float) -> bool | None:
    if any(member.interval is not None and member.interval.low >= share for member in members):
        return True
    if all(member.interval is not None and member.interval.high < share for member in members):
        return False
    return None


def data_set_sizes(data: ReportData, answers: Answers) -> list[Check]:
    """SFT: the five sizes, a filtered set, tuning."""
    sizes = all_values(data, answers, "examples.size")
    wanted = ["128", "256", "512", "1024", "full"]
    variants = all_values(data, answers, "examples.variant")
    tuned = [
        name for name in ("sft.optimizer.learning_rate", "sft.batch_size") if len(all_values(data, answers, name)) > 1
    ]
    return [
        Check(f"data set sizes {listed(wanted)} (here {listed(sizes)})", set(wanted) <= set(sizes)),
        _filtered_set(data.filter_report or {}, variants),
        Check("learning rate and batch size tuned", len(tuned) == 2),
        *at_least(0.15)(data, answers),
    ]


def _filtered_set(summary: Row, variants: Sequence[str]) -> Check:
    kept, all_traces = summary.get("kept"), summary.get("traces")
    if kept is not None and kept == all_traces:
        return Check(f"a filtered set: the grader accepted all {number(kept)} traces, so that it is the raw one", False)
    size = f", {number(kept)} traces" if isinstance(kept, int) else ""
    return Check(f"a filtered set{size} (here {listed(variants)})", "filtered" in variants)


def expert_rounds(data: ReportData, answers: Answers) -> list[Check]:
    """Expert Iteration: what was varied, and the curve of its entropy."""
    names = ("expert_iteration.questions_per_step", "expert_iteration.group_size", "expert_iteration.sft.epochs")
    questions, samples, epochs = (all_values(data, answers, name) for name in names)
    rounds = all_values(data, answers, "expert_iteration.n_ei_steps")
    return [
        Check(f"5 rounds (here {listed(rounds)})", "5" in rounds),
        Check(
            f"questions per step 512, 1024, 2048 (here {listed(questions)})", {"512", "1024", "2048"} <= set(questions)
        ),
        Check(f"two values of G (here {listed(samples)})", len(samples) > 1),
        Check(f"two numbers of epochs (here {listed(epochs)})", len(epochs) > 1),
        *_entropy_by_round(data, answers),
        *at_least(0.15)(data, answers),
    ]


def _entropy_by_round(data: ReportData, answers: Answers) -> list[Check]:
    """Whether the figure of the rounds has its panel of entropy, which wants it of every round."""
    figures = [rounds_figure(answer, data.analysis) for answer in answers]
    drawn = any(figure is not None and len(figure.panels) > 1 for figure in figures)
    return [
        Check("entropy round by round", drawn),
        *([_entropies(data, answers, "grpo", "GRPO")] if _finals(data, "grpo") else []),
    ]


def _entropies(data: ReportData, answers: Answers, method: str, name: str) -> Check:
    """Entropy of these experiments' models beside that of another method's, each on the problems it is evaluated on."""
    words, others = f"entropy beside that of {name}", _finals(data, method)
    if not others:
        return Check(f"{words}: no run of it in this study", False)
    here = _range([row for answer in answers for member in answer.done for row in member.rows])
    there = _range(others)
    if here is None or there is None:
        return Check(f"{words}: not recorded", False)
    return Check(f"{words}: {here} nats per token, {name} {there}", True)


def _finals(data: ReportData, method: str) -> list[EvaluationRow]:
    """What a method's runs ended with."""
    return [row for row in data.analysis.evaluations if row.method == method and not ROUND.search(row.name)]


def _range(rows: Sequence[EvaluationRow]) -> str | None:
    """Smallest to largest mean entropy; None where none was recorded."""
    known = [f"{row.report.mean_entropy:.2f}" for row in rows if row.report.mean_entropy is not None]
    ends = dict.fromkeys([min(known, key=float), max(known, key=float)]) if known else {}
    return " to ".join(ends) or None


def training_loop(data: ReportData, answers: Answers) -> list[Check]:
    """GRPO: validation and rollouts over training."""
    names = _runs(answers)
    return [
        Check("accuracy on dev problems over training", _recorded(data, names, "eval/accuracy")),
        Check("rollouts over time", any(data.rollouts.get(name) for name in names)),
    ]


def _runs(answers: Answers) -> list[str]:
    return [row.name for answer in answers for member in answer.done for row in member.rows]


def _recorded(data: ReportData, names: Sequence[str], *metrics: str) -> bool:
    """Whether some run recorded each of these as a number."""
    points = [point.get("metrics", {}) for name in names for point in data.curves.get(name, [])]
    return all(any(is_number(point.get(metric)) for point in points) for metric in metrics)


def off_policy_loop(data: ReportData, answers: Answers) -> list[Check]:
    """Off-policy updates: several per rollout batch, under GRPO's clip, whose share is logged."""
    updates = sorted({count for answer in answers for count in updates_of(data, answer)})
    losses = all_values(data, answers, LOSS)
    return [
        Check(f"several updates per rollout batch (here {listed(list(map(str, updates)))})", max(updates) > 1),
        Check(f"GRPO-Clip (here {listed(losses)})", "grpo_clip" in losses),
        Check("clip fraction logged", _recorded(data, _runs(answers), "train/clip_fraction_high")),
    ]


def off_policy_sweep(data: ReportData, answers: Answers) -> list[Check]:
    """A broad and a focused part, and their curves."""
    counts = sorted({int(value) for value in all_values(data, answers, STEPS) if value.isdigit()})
    here, names = f"(steps here: {listed(list(map(str, counts)))})", _runs(answers)
    timed = _recorded(data, names, "eval/accuracy", "time/step")
    return [
        Check(f"a broad sweep of fewer than 50 steps {here}", any(count < 50 for count in counts)),
        Check(f"focused runs of 200 steps {here}", any(count >= 200 for count in counts)),
        Check("accuracy against steps and wall-clock time", timed),
        Check("entropy over training", _recorded(data, names, "train/entropy")),
        _entropies(data, answers, "ei", "Expert Iteration"),
    ]


def rewards_of_prompts(data: ReportData, answers: Answers) -> list[Check]:
    """Which prompts were compared, and whether each was trained and judged under its own reward."""
    pairs = {
        (member_value(data, answer, member, "prompt"), member_value(data, answer, member, "evaluation.reward"))
        for answer in answers
        for member in answer.done
    }
    told = {(prompt, reward or "r1_zero") for prompt, reward in pairs if prompt is not None}
    wanted = [REWARDS.get(PurePath(prompt).stem) for prompt, _ in sorted(told)]
    fits = [None if one is None else reward in one for one, (_, reward) in zip(wanted, sorted(told), strict=True)]
    words = "; ".join(f"{prompt} under {reward}" for prompt, reward in sorted(told))
    met = False if False in fits else None if None in fits else True
    return [*told_values("prompt")(data, answers), Check(f"each prompt under its own reward ({words})", met)]


def told_values(name: str) -> Callable[[ReportData, Answers], list[Check]]:
    """Says which values were compared."""

    def check(data: ReportData, answers: Answers) -> list[Check]:
        values = all_values(data, answers, name)
        return [Check(f"{setting_name(name)}: {listed(values)}", len(values) > 1)]

    return check
