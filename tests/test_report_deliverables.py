"""What the assignment's deliverables find in a study, and what they check: pytest tests/test_report_deliverables.py"""

from typing import Any

import pytest
from invented_study import analysis_of, grpo_curve

from alignment_core.comparability import PUBLISHED_R1_ZERO
from alignment_core.report_answers import answers
from alignment_core.report_checks import Check
from alignment_core.report_data import KeyLink, Prompt, ReportData, StageRow
from alignment_core.report_deliverables import DeliverableRow, deliverable_rows
from alignment_core.stage_config import Comparison, ExperimentOutline, MemberOutline
from alignment_core.study_config import StudyConfig
from flows.presets import read_preset
from tasks.outline import outlines

STEPS, EPOCHS, LOSS = "grpo.n_grpo_steps", "grpo.epochs_per_rollout_batch", "grpo.loss_type"
KINDS = {"expert_iteration": "ei"}


def outline(name: str, *varied: dict[str, Any], method: str = "grpo", **more: Any) -> ExperimentOutline:
    """An experiment of one seed with a member per mapping of settings."""
    groups = [f"{name}/{i}" for i in range(len(varied))] if varied[1:] else [name]
    members = tuple(MemberOutline(group=group, varied=one) for group, one in zip(groups, varied, strict=True))
    return ExperimentOutline(name=name, method=method, members=members, seeds=(0,), **more)


def done(*experiments: ExperimentOutline, **more: Any) -> ReportData:
    """A study whose every member has been evaluated."""
    runs = [
        Comparison.model_validate(
            {"name": f"{one.group}/seed0", "method": KINDS.get(experiment.method, experiment.method), "seed": 0,
             "experiment": experiment.name}
        )
        for experiment in experiments
        for one in experiment.members
    ]  # fmt: skip
    return ReportData(
        title="t", analysis=analysis_of(*((run, 5, 9) for run in runs)), evaluations=runs,
        experiments=list(experiments), **more,
    )  # fmt: skip


def deliverable(data: ReportData, name: str) -> DeliverableRow:
    return next(row for row in deliverable_rows(data, answers(data)) if row.name == name)


def checks(data: ReportData, name: str) -> dict[str, bool | None]:
    return {check.words: check.met for check in deliverable(data, name).checks}


# SFT


@pytest.mark.parametrize(
    ("kept", "words", "met"),
    [
        (1311, "a filtered set, 1,311 traces (here raw, filtered)", True),
        (1439, "a filtered set: the grader accepted all 1,439 traces, so that it is the raw one", False),
    ],
)
def test_a_filter_that_drops_nothing_makes_no_filtered_set(kept: int, words: str, met: bool) -> None:
    variants = [{"examples.variant": "raw"}, {"examples.variant": "filtered"}]
    data = done(outline("sft", *variants, method="sft"), filter_report={"traces": 1439, "kept": kept})
    assert checks(data, "sft_experiment")[words] is met


# Off-policy


@pytest.mark.parametrize("scale", ["math-1.5b", "tiny"])
def test_the_focused_runs_of_the_shipped_sweep_are_part_of_its_answer(scale: str) -> None:
    config = StudyConfig.model_validate(read_preset(f"{scale}/grpo-off-policy"))
    data = with_curves(done(*outlines(config)))
    row = deliverable(data, "grpo_off_policy_sweep")
    names = ["grpo/broad", "grpo/focused/on-policy", "grpo/focused/winner"]
    assert [sentence.partition(":")[0] for sentence in row.sentences] == names
    assert [words for _, words in row.anchors] == [words for name in names for words in (name, f"{name}: curves")]
    met = [check.met for check in row.checks]
    assert met == [True, scale == "math-1.5b", True, True, True]
    steps = "40, 200" if scale == "math-1.5b" else "25, 100"
    assert row.checks[1].words == f"focused runs of 200 steps (steps here: {steps})"
    alone = [one for one in outlines(config) if one.method != "expert_iteration"]
    lacking = deliverable(with_curves(done(*alone)), "grpo_off_policy_sweep").checks[4]
    assert lacking == Check("entropy beside that of Expert Iteration: no run of it in this study", False)


def with_curves(data: ReportData) -> ReportData:
    """The same, every run with its curves."""
    return data.model_copy(update={"curves": {run.name: grpo_curve(6, 0.01, 0) for run in data.evaluations}})


def test_an_ablation_that_carries_an_off_policy_winner_is_another_question() -> None:
    sweep = outline("sweep", {EPOCHS: 1}, {EPOCHS: 2}, rule="best")
    clip = outline("clip", {LOSS: "grpo_clip"}, {LOSS: "grpo_no_clip"}, carry=("sweep",))
    long = outline("long", {STEPS: 200}, carry=("sweep",))
    other = outline("other", {}, start="sft/full")
    data = done(outline("first", {}), sweep, clip, long, other)
    found = deliverable(data, "grpo_off_policy_sweep").sentences
    assert [sentence.partition(":")[0] for sentence in found] == ["first", "sweep", "long"]
    assert not deliverable(done(outline("first", {}), clip, long), "grpo_off_policy_sweep").sentences


def test_a_carried_winner_s_settings_are_those_of_who_carries_it() -> None:
    sweep = outline("sweep", {EPOCHS: 1}, {EPOCHS: 4}, rule="best", settings={LOSS: "grpo_clip"})
    candidates = [{"group": f"sweep/{i}", "accuracy": 0.4, "low": -0.1, "high": 0.1} for i in range(2)]
    chosen = {"winner": "sweep/1", "rule": "best", "problems": 48, "candidates": candidates}
    batches = {"grpo.rollout_batch_size": "256", "grpo.train_batch_size": "256"}
    own = batches | {LOSS: "reinforce_with_baseline", EPOCHS: "1"}
    data = done(sweep, outline("long", {}, carry=("sweep",)), settings=own, choices={"sweep": chosen})
    row = deliverable(data, "grpo_off_policy")
    assert [sentence.partition(":")[0] for sentence in row.sentences] == ["sweep", "long"]
    assert row.checks[0].words == "several updates per rollout batch (here 1, 4)"
    assert [check.met for check in row.checks] == [True, True, False]
    unchosen = data.model_copy(update={"choices": {}})
    assert [s.partition(":")[0] for s in deliverable(unchosen, "grpo_off_policy").sentences] == ["sweep"]


def test_updates_per_rollout_batch_are_counted() -> None:
    own = {EPOCHS: "2", "grpo.rollout_batch_size": "256", "grpo.train_batch_size": "64", LOSS: "grpo_clip"}
    data = done(outline("x", {}), settings=own, curves={"x/seed0": grpo_curve(3, 0.1, 0)})
    assert checks(data, "grpo_off_policy") == {
        "several updates per rollout batch (here 8)": True,
        "GRPO-Clip (here grpo_clip)": True,
        "clip fraction logged": True,
    }
    assert not deliverable(done(outline("x", {}), settings=own | {EPOCHS: "1", "grpo.train_batch_size": "256"}),
                           "grpo_off_policy").sentences  # fmt: skip


# Entropy, lengths, prompts


def expert(rounds: int, entropy: float | None = 0.5) -> ReportData:
    """Expert Iteration of this many rounds, beside GRPO."""
    runs = [
        Comparison(name="ei/seed0" if step == rounds else f"ei/seed0/round-{step:02d}", method="ei", seed=0, step=step,
                   experiment="ei")
        for step in range(1, rounds + 1)
    ]  # fmt: skip
    runs.append(Comparison(name="grpo/seed0", method="grpo", seed=0, experiment="grpo"))
    analysis = analysis_of(*((run, 5, 9) for run in runs))
    rows = [
        row.model_copy(update={"report": row.report.model_copy(update={"mean_entropy": entropy})})
        for row in analysis.evaluations
    ]
    analysis = analysis.model_copy(update={"evaluations": rows})
    experiments = [outline("ei", {}, method="expert_iteration"), outline("grpo", {EPOCHS: 1})]
    return ReportData(title="t", analysis=analysis, evaluations=runs, experiments=experiments)


def test_expert_iteration_wants_the_curve_of_its_entropy() -> None:
    both = "entropy beside that of GRPO: 0.50 nats per token, GRPO 0.50"
    found = checks(expert(3), "expert_iteration_experiment")
    assert (found["entropy round by round"], found[both]) == (True, True)
    assert checks(expert(1), "expert_iteration_experiment")["entropy round by round"] is False
    alone = done(outline("ei", {}, method="expert_iteration"))
    assert not [words for words in checks(alone, "expert_iteration_experiment") if "GRPO" in words]


def test_what_was_not_recorded_is_no_curve() -> None:
    found = checks(expert(3, None), "expert_iteration_experiment")
    assert found["entropy round by round"] is False
    assert found["entropy beside that of GRPO: not recorded"] is False


def test_the_written_question_about_lengths_gets_its_numbers() -> None:
    data = done(outline("x", *({"grpo.length_normalization": one} for one in ("masked_mean", "constant"))))
    points = [
        {"step": step, "metrics": {"train/mean_length": 40.0 + step, "train/mean_length_correct": float("nan"),
                                   "train/grad_norm": 0.1 * step}}
        for step in (1, 3)
    ]  # fmt: skip
    row = deliverable(data.model_copy(update={"curves": {"x/0/seed0": points}}), "think_about_length_normalization")
    assert row.sentences == [
        "x: Means over training: 0: responses 42 tokens, gradient norm 0.2. 1: its training recorded no lengths."
    ]
    assert row.checks == []
    assert "an argument no run can make" in row.asks


@pytest.mark.parametrize(
    ("second", "met"),
    [
        ({"prompt": "question_only", "evaluation.reward": "question_only"}, True),
        ({"prompt": "question_only"}, False),
        ({"prompt": "prompts/r1_zero.prompt"}, True),
        ({"prompt": "my-own.txt", "evaluation.reward": "number"}, None),
        ({"prompt": "plain", "evaluation.reward": "number"}, True),
    ],
)
def test_each_prompt_wants_its_own_reward(second: dict[str, str], met: bool | None) -> None:
    own = {"prompt": "reasoning", "evaluation.reward": "r1_zero"}
    data = done(outline("grpo/a", {}), outline("grpo/b", {}, settings=second), settings=own)
    *_, check = deliverable(data, "grpo_prompt_ablation").checks
    assert check.met is met
    assert "reasoning under r1_zero" in check.words
    assert f"{second['prompt']} under {second.get('evaluation.reward', 'r1_zero')}" in check.words


# Leaderboard


def leaderboard(seconds: tuple[float | None, ...] = (12_000.0, 1_000.0, 20.0), **settings: str) -> ReportData:
    """One run under a budget of four hours: GRPO, sampling and grading that took these seconds, 12 test problems."""
    stages = dict(zip(("grpo", "sample", "grade", "pretrain"), (*seconds, 50_000.0), strict=True))
    own = {"budget.hours": "4.0", "prompt": "r1_zero.prompt", "evaluation.limit": "None", "data.limit_test": "None",
           "sampling.temperature": "1.0", "sampling.max_tokens": "1024", "evaluation.reward": "r1_zero"}  # fmt: skip
    return done(
        outline("leaderboard", {}),
        settings=own | {name.replace("__", "."): value for name, value in settings.items()},
        stages=[StageRow(label=stage, stage=stage, key=f"k-{stage}", seconds=took) for stage, took in stages.items()],
        stands_on={
            "leaderboard/seed0": [KeyLink(what=stage, stage=stage, key=f"k-{stage}") for stage in reversed(stages)]
        },
        prompts=[Prompt(label="prepare", name="r1_zero.prompt", text="x", sha256=PUBLISHED_R1_ZERO)],
        sizes={"train": 100, "test": 12},
    )


def test_a_leaderboard_run_is_held_against_its_rules() -> None:
    assert checks(leaderboard(), "leaderboard") == {
        "leaderboard: took 3 h 37 min of 4 h, evaluation included": True,
        "all 12 test problems": True,
        "the prompt r1_zero, sha256 56213732da87 (here r1_zero.prompt, sha256 56213732da87)": True,
        "temperature 1 (here 1)": True,
        "max_tokens 1024 (here 1024)": True,
        "reward r1_zero (here r1_zero)": True,
    }


def test_without_a_budget_there_is_no_leaderboard() -> None:
    data = done(outline("leaderboard", {}), settings={"budget": "None"})
    assert not deliverable(data, "leaderboard").sentences
    assert deliverable(done(outline("x", {}, settings={"budget.hours": 0.5})), "leaderboard").sentences


@pytest.mark.parametrize(
    ("data", "words", "met"),
    [
        (leaderboard((14_000.0, 401.0, 0.0)), "took 4 h 0 min of 4 h", False),
        (leaderboard((232.9, 1.1, 10.0), budget__hours="0.0666667"), "took 4 min 4 s of 4 min 0 s", False),
        (leaderboard((14_000.0, None, 0.0)), "the time of its stages is not known", None),
        (leaderboard(evaluation__limit="12"), "all test problems: 12 were asked (evaluation.limit 12)", False),
        (leaderboard().model_copy(update={"sizes": {"test": 13}}), "all test problems: 12 were asked", False),
        (leaderboard(evaluation__split="dev"), "all test problems: 12 of dev were asked", False),
        (leaderboard(prompt="other.txt"), "(here other.txt, sha256 not known)", None),
        (leaderboard(sampling__temperature="0.7"), "temperature 1 (here 0.7)", False),
        (leaderboard(sampling__max_tokens="512"), "max_tokens 1024 (here 512)", False),
        (leaderboard(evaluation__reward="number"), "reward r1_zero (here number)", False),
    ],
)
def test_what_breaks_a_rule_of_the_leaderboard_is_crossed(data: ReportData, words: str, met: bool | None) -> None:
    (found,) = [one for told, one in checks(data, "leaderboard").items() if words in told]
    assert found is met


def test_the_longest_run_counts_and_another_template_is_not_the_published_one() -> None:
    data = leaderboard()
    slower = Comparison(name="leaderboard/seed1", method="grpo", seed=1, experiment="leaderboard")
    runs = [*data.evaluations, slower]
    links = {**data.stands_on, slower.name: [KeyLink(what="x", stage="grpo", key="k-slow")]}
    data = data.model_copy(
        update={
            "analysis": analysis_of(*((run, 5, 9) for run in runs)),
            "evaluations": runs,
            "stages": [*data.stages, StageRow(label="x", stage="grpo", key="k-slow", seconds=15_000.0)],
            "stands_on": links,
            "prompts": [Prompt(label="prepare", name="r1_zero.prompt", text="x", sha256="ab" * 32)],
        }
    )
    found = checks(data, "leaderboard")
    assert found["leaderboard: took 4 h 10 min of 4 h, evaluation included, the longest of 2 runs"] is False
    assert found["the prompt r1_zero, sha256 56213732da87 (here r1_zero.prompt, sha256 abababababab)"] is False
