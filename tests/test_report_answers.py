"""What experiments, deliverables and costs say, and when they may say it: pytest tests/test_report_answers.py"""

from typing import Any

import pytest
from invented_study import RATE, analysis_of, choice, grpo_curve, outlines, study, sweep, verdict

from alignment_core.report_answers import ExperimentAnswer, answers, conclusions
from alignment_core.report_costs import SHARED, by_kind, costs, origins
from alignment_core.report_data import ReportData
from alignment_core.report_deliverables import DeliverableRow, deliverable_rows
from alignment_core.stage_config import Comparison, ExperimentOutline, MemberOutline


def by_name(data: ReportData) -> dict[str, ExperimentAnswer]:
    return {answer.outline.name: answer for answer in answers(data)}


def deliverable(data: ReportData, name: str) -> DeliverableRow:
    return next(row for row in deliverable_rows(data, answers(data)) if row.name == name)


def experiment(method: str, name: str, *varied: dict[str, Any], settings: dict[str, Any] | None = None) -> ReportData:
    """A study of one experiment whose members differ in these settings."""
    members = tuple(MemberOutline(group=f"{name}/{i}", varied=own) for i, own in enumerate(varied))
    kind = {"expert_iteration": "ei"}.get(method, method)
    runs = [
        (Comparison.model_validate({"name": f"{one.group}/seed0", "method": kind, "seed": 0, "experiment": name}), 5, 9)
        for one in members
    ]
    outline = ExperimentOutline(name=name, method=method, settings=settings or {}, members=members, seeds=(0,))
    return ReportData(
        title="t", analysis=analysis_of(*runs), evaluations=[run for run, _, _ in runs], experiments=[outline]
    )


# Experiments


def test_members_are_averaged_over_their_seeds_and_what_lacks_is_named() -> None:
    first, second, third = by_name(sweep())["grpo/lr"].members
    assert [len(member.rows) for member in (first, second, third)] == [3, 3, 2]
    assert first.accuracy == pytest.approx((4 + 4 + 5) / 36)
    assert (first.label, first.varied) == ("2e-5", {RATE: "2e-5"})
    assert [member.missing for member in (first, second, third)] == [[], [], [2]]
    assert by_name(sweep())["grpo/lr"].missing == ["grpo/lr/0.001/seed2"]
    never = by_name(sweep())["grpo/never"]
    assert never.missing == [], "what `only` leaves out is not missing"
    asked = [one.model_copy(update={"asked": True}) for one in outlines()]
    assert by_name(sweep(experiments=asked))["grpo/never"].missing == ["grpo/never/seed0"]


def test_a_tested_difference_of_settings_is_the_verdict() -> None:
    first, second, third = by_name(sweep())["grpo/lr"].members
    assert first.versus_start is not None
    assert (first.versus_start.verdict, first.versus_start.difference) == ("better", 0.2)
    assert first.versus_first is None
    assert second.versus_first is not None
    assert third.versus_first is not None
    assert (second.versus_first.verdict, third.versus_first.verdict) == ("better", "cannot tell")


def test_single_runs_among_several_seeds_decide_nothing() -> None:
    members = by_name(sweep(setting_comparisons=[]))["grpo/lr"].members
    assert [member.versus_start for member in members] == [None] * 3


def test_in_an_analysis_of_before_the_seeds_have_to_agree() -> None:
    analysis = sweep().analysis
    old = [one.model_copy(update={"p_holm": one.p_value, "verdict": "better"}) for one in analysis.comparisons]
    data = sweep(setting_comparisons=[], analysis=analysis.model_copy(update={"comparisons": old}))
    member = by_name(data)["grpo/lr"].members[2]
    assert member.versus_start is not None
    assert (member.versus_start.verdict, member.versus_start.low) == ("better", None)
    assert member.versus_start.note == "each seed by itself: 2 better"
    assert member.versus_first is None


def test_an_interval_is_the_analysis_s_or_of_a_single_run() -> None:
    data = ReportData(title="t", analysis=study())
    (sft,), (grpo,) = by_name(data)["sft"].members, by_name(data)["grpo"].members
    assert sft.interval is None
    assert grpo.interval is not None
    report = grpo.rows[0].report
    assert (grpo.interval.low, grpo.interval.high) == (report.accuracy_low, report.accuracy_high)
    assert by_name(sweep())["grpo/lr"].members[1].interval == sweep().intervals["grpo/lr/0.0002"]


def test_members_of_other_experiments_are_compared_with_by_name_and_by_choice() -> None:
    first, *others = outlines()
    second = others[0].model_copy(update={"against": ("grpo/lr", "grpo/lr/2e-05")})
    told = [
        verdict("sft/128/raw", "grpo/lr/0.001", -0.2, "worse"),
        verdict("sft/128/raw", "grpo/lr/2e-05", 0.01, "cannot tell"),
    ]
    answer = by_name(sweep(experiments=[first, second, others[1]], setting_comparisons=told))["sft"]
    assert {"Against grpo/lr/0.001: worse.", "Against grpo/lr/2e-05: cannot tell."} <= set(conclusions(answer))


def test_conclusions_follow_the_tests() -> None:
    said = conclusions(by_name(sweep())["grpo/lr"])
    assert said[1] == "Against 2e-5, the first listed: better: 0.0002; cannot tell: 0.001."
    assert said[2].startswith("Taken on: 0.001, by the highest mean accuracy on 48 dev problems (60.0 %); clear")
    assert said[3] == "Not done: grpo/lr/0.001/seed2."
    unclear = conclusions(by_name(sweep(choices={"grpo/lr": choice(low=-0.05)}))["grpo/lr"])
    assert "not clear: chance alone could explain its lead" in unclear[2]
    assert "Its members were not tested against each other" in conclusions(by_name(sweep())["sft"])[1]
    asked = [one.model_copy(update={"asked": True}) for one in outlines()]
    failed = {"grpo/never/seed0": "none of 1 samples is right", "grpo/lr/2e-05/seed9": "of no outline"}
    assert conclusions(by_name(sweep(experiments=asked, failures=failed))["grpo/never"]) == [
        "No member has been evaluated.",
        "Not done: grpo/never/seed0.",
        "grpo/never/seed0 failed: none of 1 samples is right.",
    ]
    assert conclusions(by_name(sweep())["grpo/never"]) == []


def test_rounds_of_expert_iteration_are_one_run() -> None:
    (member,) = by_name(ReportData(title="t", analysis=study()))["ei"].members
    assert [row.name for row in member.rows] == ["ei/base/seed0"]


def test_two_settings_of_one_last_name_are_told_in_full() -> None:
    varied = {"sft.optimizer.learning_rate": 0.1, "grpo.optimizer.learning_rate": 0.2}
    assert list(by_name(experiment("grpo", "x", varied))["x"].columns.values()) == [
        "sft.optimizer.learning rate",
        "grpo.optimizer.learning rate",
    ]


# Deliverables


def test_each_deliverable_is_answered_or_names_the_study_that_would() -> None:
    rows = {row.name: row for row in deliverable_rows(sweep(), answers(sweep()))}
    answered = {name for name, row in rows.items() if row.sentences}
    assert answered == {"math_baseline", "log_generations", "sft_experiment", "grpo_train_loop", "grpo_learning_rate"}
    assert rows["grpo_prompt_ablation"].studies == ("prompt",)
    assert rows["grpo_learning_rate"].anchors == [
        ("experiment-grpo-lr", "grpo/lr"),
        ("curves-experiment-grpo-lr", "grpo/lr: curves"),
    ]
    assert "1 formatted and right, 1 formatted and wrong, 10 unformatted" in rows["math_baseline"].sentences[0]


def test_the_studies_that_deliverables_name_are_shipped() -> None:
    from flows.presets import study_names

    named = {study for row in deliverable_rows(sweep(), answers(sweep())) for study in row.studies}
    assert named <= set(study_names())


def test_an_accuracy_counts_as_reached_only_with_its_interval() -> None:
    def met(**more: Any) -> bool | None:
        return deliverable(sweep(**more), "grpo_learning_rate").checks[0].met

    assert met() is True
    unknown = {f"grpo/lr/{rate}": {"low": 0.1, "high": 0.4} for rate in (2e-05, 0.0002, 0.001)}
    assert met(intervals=unknown) is None
    assert met(intervals={name: {"low": 0.01, "high": 0.2} for name in unknown}) is False


LOSS = "grpo.loss_type"


@pytest.mark.parametrize(
    ("name", "method", "varied"),
    [
        ("expert_iteration_experiment", "expert_iteration", [{}]),
        ("grpo_baselines", "grpo", [{LOSS: "no_baseline"}, {LOSS: "reinforce_with_baseline"}]),
        ("think_about_length_normalization", "grpo", [{"grpo.length_normalization": one} for one in ("mean", "sum")]),
        ("grpo_length_normalization", "grpo", [{"grpo.length_normalization": one} for one in ("masked_mean", "sum")]),
        ("grpo_group_standard_deviation", "grpo", [{"grpo.use_std_normalization": one} for one in (True, False)]),
        ("grpo_off_policy_sweep", "grpo", [{"grpo.epochs_per_rollout_batch": one} for one in (1, 2)]),
        ("grpo_off_policy_clip_ablation", "grpo", [{LOSS: "grpo_clip"}, {LOSS: "grpo_no_clip"}]),
        ("grpo_prompt_ablation", "grpo", [{"prompt": "reasoning"}, {"prompt": "question_only"}]),
        ("sft_experiment", "sft", [{"sft.batch_size": one} for one in (8, 16)]),
    ],
)  # fmt: skip
def test_what_an_experiment_varies_says_what_it_answers(name: str, method: str, varied: list[dict[str, Any]]) -> None:
    assert deliverable(experiment(method, "x", *varied), name).sentences
    assert not deliverable(experiment(method, "x", varied[0]), name).sentences or name.startswith("expert")


def test_a_setting_left_out_by_a_member_has_the_study_s_value() -> None:
    data = experiment("grpo", "x", {}, {"grpo.epochs_per_rollout_batch": 2})
    told = data.model_copy(update={"settings": {"grpo.epochs_per_rollout_batch": "1", "grpo.n_grpo_steps": "200"}})
    checks = deliverable(told, "grpo_off_policy_sweep").checks
    assert [check.met for check in checks[:2]] == [False, True]


def test_a_value_that_is_the_study_s_own_is_no_other_value() -> None:
    data = experiment("grpo", "x", {}, {"grpo.use_std_normalization": True, RATE: 1e-05})
    own = {"grpo.use_std_normalization": "True", RATE: "1e-05"}
    told = data.model_copy(update={"settings": own})
    assert not deliverable(told, "grpo_group_standard_deviation").sentences
    assert not deliverable(told, "grpo_learning_rate").sentences
    other = data.model_copy(update={"settings": own | {"grpo.use_std_normalization": "False"}})
    assert deliverable(other, "grpo_group_standard_deviation").sentences


def test_the_training_loop_wants_validation_and_rollouts() -> None:
    assert [check.met for check in deliverable(sweep(), "grpo_train_loop").checks] == [True, True]
    bare = sweep(curves={"grpo/lr/2e-05/seed0": grpo_curve(3, 0.1, 0)[1:]}, rollouts={})
    assert [check.met for check in deliverable(bare, "grpo_train_loop").checks] == [False, False]


# Costs


def test_costs_are_counted_where_a_stage_was_first_needed() -> None:
    shared, lr = costs(sweep(), answers(sweep()))
    assert (shared.name, shared.stages, shared.total) == (SHARED, 2, 80.0)
    assert shared.seconds == {"training": 74.0, "sampling": 6.0, "grading": 0.0, "other": 0.0}
    assert (shared.trained, shared.sampled) == (None, 240.0)
    assert (lr.name, lr.seconds["training"], lr.trained, lr.sampled) == ("grpo/lr", 60.0, 100_000.0, 120_000.0)


def test_kinds_and_origins_add_up() -> None:
    rows = sweep().stages
    assert [(row.stage, row.seconds) for row in by_kind(rows)] == [("pretrain", 74.0), ("grpo", 60.0), ("sample", 6.0)]
    newest, oldest = origins(rows)
    assert (newest.run, newest.stages, newest.resumed) == ("b", 1, 1)
    assert (oldest.run, oldest.seconds, oldest.hosts) == ("a", 80.0, ["here"])
    assert origins([row.model_copy(update={"run": ""}) for row in rows]) == []
