"""A run's record as curves: what counts as training time, rounds in a row, gaps: pytest tests/test_run_curves.py"""

from typing import Any

import pytest

from alignment_core.run_curves import Curve, chained, curve_of, mean_curve


def point(step: int, **metrics: Any) -> dict[str, Any]:
    """One point; underscores in names stand for the slash of a metric."""
    return {"step": step, "metrics": {name.replace("_", "/", 1): value for name, value in metrics.items()}}


def test_time_is_what_the_steps_took_and_not_what_lay_between_them() -> None:
    points = [
        point(0, eval_accuracy=0.1),
        point(1, time_step=2.0, train_tokens=10.0),
        # Killed here and resumed a day later: a wall clock would show it.
        {**point(2, time_step=3.0, train_tokens=20.0, eval_accuracy=0.3), "time": 90_000.0},
    ]
    run = chained({"grpo/base/seed0": points})["grpo/base/seed0"]
    assert [(one.step, one.seconds, one.tokens) for one in run] == [(0, 0, 0), (1, 2.0, 10.0), (2, 5.0, 30.0)]
    assert curve_of(run, "eval/accuracy", "seconds").points == [(0, 0.0, 0.1), (2, 5.0, 0.3)]
    assert curve_of(run, "eval/accuracy", "tokens").points == [(0, 0.0, 0.1), (2, 30.0, 0.3)]


def test_sft_steps_tell_their_updates() -> None:
    run = chained({"sft/seed0": [point(1, time_update=1.5), point(2, time_update=1.5)]})["sft/seed0"]
    assert [one.seconds for one in run] == [1.5, 3.0]
    assert [one.tokens for one in run] == [None, None]


def test_a_step_that_tells_no_time_leaves_the_rest_unknown() -> None:
    run = chained({"x": [point(1, time_step=1.0, eval_accuracy=0.5), point(2, eval_accuracy=0.6)]})["x"]
    assert curve_of(run, "eval/accuracy", "seconds").points == [(1, 1.0, 0.5)]
    assert len(curve_of(run, "eval/accuracy").points) == 2


def test_rounds_follow_one_another_under_their_members_name() -> None:
    rounds = {
        f"ei/seed0/round-{number:02d}": [point(0, eval_accuracy=0.9), point(4, time_update=1.0, train_loss=number)]
        for number in (10, 2, 1)
    }
    (run,) = chained(rounds).items()
    assert run[0] == "ei/seed0"
    assert curve_of(run[1], "train/loss", "seconds").points == [(4, 1.0, 1.0), (8, 2.0, 2.0), (12, 3.0, 10.0)]
    # What a later round starts from is the end of the one before: it is asked twice and shown once.
    assert [step for step, _, _ in curve_of(run[1], "eval/accuracy").points] == [0]


def test_what_is_no_number_is_a_gap() -> None:
    values = (0.5, float("nan"), float("inf"), None, True, "x")
    run = chained({"x": [point(step, train_loss=value) for step, value in enumerate(values, 1)]})["x"]
    assert curve_of(run, "train/loss") == Curve([(1, 1.0, 0.5)], [2, 3, 4, 5, 6])
    assert curve_of(run, "train/reward") == Curve([], [])
    assert chained({"x": [{"step": "one", "metrics": {}}, {"step": 1, "metrics": None}]})["x"] == []


def test_a_mean_is_over_steps_that_all_seeds_have() -> None:
    first = Curve([(1, 10.0, 0.2), (2, 20.0, 0.4), (3, 30.0, 0.6)], [])
    second = Curve([(1, 14.0, 0.4), (3, 34.0, 0.2)], [2])
    assert mean_curve([first, second]) == [(12.0, pytest.approx(0.3)), (32.0, pytest.approx(0.4))]
    assert mean_curve([first]) == [(10.0, 0.2), (20.0, 0.4), (30.0, 0.6)]
    assert mean_curve([]) == []
