"""The experiments of the CS336 alignment assignment, each answered by this study or by the one that would answer it.

Whether this study answers one is read off what its experiments vary, not off its name.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from alignment_core.report_answers import ROUND, ExperimentAnswer, MemberAnswer, conclusions
from alignment_core.report_data import ReportData
from alignment_core.report_text import number, percent, setting_name, setting_told, setting_value

Answers = list[ExperimentAnswer]
RATE, LOSS, EPOCHS = "grpo.optimizer.learning_rate", "grpo.loss_type", "grpo.epochs_per_rollout_batch"


class Check(NamedTuple):
    """One thing a deliverable asks for."""

    words: str
    met: bool | None
    """None where the numbers cannot tell."""


class Deliverable(NamedTuple):
    """One problem of the assignment."""

    name: str
    asks: str
    studies: tuple[str, ...]
    """The shipped studies that answer it."""
    find: Callable[[ReportData, Answers], Answers]
    """The experiments of a study that answer it."""
    check: Callable[[ReportData, Answers], list[Check]]


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
        sentences = [f"{answer.outline.name}: {' '.join([_reached(answer), *conclusions(answer)])}" for answer in found]
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


def values_of(data: ReportData, answer: ExperimentAnswer, name: str) -> list[str]:
    """Distinct values of a setting over an experiment's evaluated members, the study's own where none is given."""
    own = setting_told(data.settings[name]) if name in data.settings else None
    shared = setting_value(answer.outline.settings[name]) if name in answer.outline.settings else own
    found = [member.varied.get(name, shared) for member in answer.done]
    return list(dict.fromkeys(str(value) for value in found if value is not None))


def _all_values(data: ReportData, answers: Answers, name: str) -> list[str]:
    return list(dict.fromkeys(value for answer in answers for value in values_of(data, answer, name)))


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
    """GRPO under at least two prompts, in one experiment or in several."""
    found = [one for one in _of("grpo", answers) if one.done]
    return found if len(_all_values(data, found, "prompt")) > 1 else []


def _budgeted(data: ReportData, answers: Answers) -> Answers:
    return _of("grpo", answers) if "budget.hours" in data.settings else []


def _at_least(share: float) -> Callable[[ReportData, Answers], list[Check]]:
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


def _sizes(data: ReportData, answers: Answers) -> list[Check]:
    sizes = _all_values(data, answers, "examples.size")
    wanted = ["128", "256", "512", "1024", "full"]
    variants = _all_values(data, answers, "examples.variant")
    kept = (data.filter_report or {}).get("kept")
    size = f", {number(kept)} traces" if isinstance(kept, int) else ""
    tuned = [
        name for name in ("sft.optimizer.learning_rate", "sft.batch_size") if len(_all_values(data, answers, name)) > 1
    ]
    return [
        Check(f"data set sizes {_list(wanted)} (here {_list(sizes)})", set(wanted) <= set(sizes)),
        Check(f"a filtered set{size} (here {_list(variants)})", "filtered" in variants),
        Check("learning rate and batch size tuned", len(tuned) == 2),
        *_at_least(0.15)(data, answers),
    ]


def _rounds(data: ReportData, answers: Answers) -> list[Check]:
    names = ("expert_iteration.questions_per_step", "expert_iteration.group_size", "expert_iteration.sft.epochs")
    questions, samples, epochs = (_all_values(data, answers, name) for name in names)
    rounds = _all_values(data, answers, "expert_iteration.n_ei_steps")
    return [
        Check(f"5 rounds (here {_list(rounds)})", "5" in rounds),
        Check(
            f"questions per step 512, 1024, 2048 (here {_list(questions)})", {"512", "1024", "2048"} <= set(questions)
        ),
        Check(f"two values of G (here {_list(samples)})", len(samples) > 1),
        Check(f"two numbers of epochs (here {_list(epochs)})", len(epochs) > 1),
        *_at_least(0.15)(data, answers),
    ]


def _loop(data: ReportData, answers: Answers) -> list[Check]:
    names = [row.name for answer in answers for member in answer.done for row in member.rows]
    measured = any("eval/accuracy" in point.get("metrics", {}) for name in names for point in data.curves.get(name, []))
    return [
        Check("accuracy on dev problems over training", measured),
        Check("rollouts over time", any(data.rollouts.get(name) for name in names)),
    ]


def _sweep(data: ReportData, answers: Answers) -> list[Check]:
    counts = [int(value) for value in _all_values(data, answers, "grpo.n_grpo_steps") if value.isdigit()]
    return [
        Check("a broad sweep of fewer than 50 steps", any(count < 50 for count in counts)),
        Check("focused runs of 200 steps", any(count >= 200 for count in counts)),
    ]


def _told_values(name: str) -> Callable[[ReportData, Answers], list[Check]]:
    """Says which values were compared."""

    def check(data: ReportData, answers: Answers) -> list[Check]:
        values = _all_values(data, answers, name)
        return [Check(f"{setting_name(name)}: {_list(values)}", len(values) > 1)]

    return check


def _list(values: Sequence[str]) -> str:
    return ", ".join(values) or "none"


DELIVERABLES = (
    Deliverable(
        "sft_experiment",
        "SFT over data set sizes, learning rate and batch size tuned; the same on traces with right answers only.",
        ("sft-size", "sft-lr-batch"),
        _varying("sft", "examples.size", "examples.variant", "sft.optimizer.learning_rate", "sft.batch_size"),
        _sizes,
    ),
    Deliverable(
        "expert_iteration_experiment",
        "Expert Iteration over questions per step, samples and epochs; entropy over training.",
        ("expert-iteration",),
        lambda data, answers: _of("expert_iteration", answers),
        _rounds,
    ),
    Deliverable(
        "grpo_train_loop",
        "GRPO with its validation rewards, and rollouts over time.",
        ("grpo-baselines",),
        lambda data, answers: _of("grpo", answers),
        _loop,
    ),
    Deliverable(
        "grpo_learning_rate",
        "GRPO over learning rates.",
        ("grpo-learning-rate",),
        _varying("grpo", RATE),
        _at_least(0.25),
    ),
    Deliverable(
        "grpo_baselines",
        "GRPO without a baseline and with the group's mean as one.",
        ("grpo-baselines",),
        _holding(LOSS, "no_baseline", "reinforce_with_baseline"),
        _told_values(LOSS),
    ),
    Deliverable(
        "grpo_length_normalization",
        "The mean over a sequence's tokens against the sum over a constant.",
        ("grpo-length-normalization",),
        _varying("grpo", "grpo.length_normalization"),
        _told_values("grpo.length_normalization"),
    ),
    Deliverable(
        "grpo_group_standard_deviation",
        "Advantages divided by the standard deviation of their group, and not.",
        ("grpo-std-normalization",),
        _varying("grpo", "grpo.use_std_normalization"),
        _told_values("grpo.use_std_normalization"),
    ),
    Deliverable(
        "grpo_off_policy_sweep",
        "Several epochs and updates per rollout batch, against steps and wall-clock time, with entropy.",
        ("grpo-off-policy",),
        _varying("grpo", EPOCHS, "grpo.train_batch_size"),
        _sweep,
    ),
    Deliverable(
        "grpo_off_policy_clip_ablation",
        "Off-policy updates with and without the clip.",
        ("grpo-clip",),
        _holding(LOSS, "grpo_clip", "grpo_no_clip"),
        _told_values(LOSS),
    ),
    Deliverable(
        "grpo_prompt_ablation",
        "The reasoning prompt against the bare question, each under its own reward.",
        ("prompt",),
        _prompts,
        _told_values("prompt"),
    ),
    Deliverable(
        "leaderboard",
        "The best accuracy within four hours, evaluation included.",
        ("leaderboard",),
        _budgeted,
        lambda data, answers: [Check(f"a budget of {data.settings['budget.hours']} h", None)],
    ),
)
"""Every experiment beyond the baseline, in the assignment's order."""
