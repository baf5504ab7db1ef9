"""A run under a budget of time: it ends where the next step, or the evaluation after it, would not fit."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_loops import GRPO, PROBLEMS, SAMPLING, TOKENIZER, likes_low_letters
from tiny_models import tiny_model

from alignment_core.policy_gradient import train_grpo
from alignment_core.records import Problem, write_jsonl
from alignment_core.runs import MemoryRun
from alignment_core.stage_config import EvaluationSize
from alignment_core.stages.grpo import evaluation_ahead
from alignment_core.time_budget import MARGIN, RECENT, UNSEEN_SHARE, EvaluationAhead, TimeBudget
from alignment_core.training_config import GRPOConfig, OptimizerConfig

CONFIG = GRPOConfig(**{**GRPO, "n_grpo_steps": 2, "validate_every": 2})
TEN_SECONDS = CONFIG.model_copy(update={"time_budget_hours": 10 / 3600, "validation_problems": 16})


class Timed(MemoryRun):
    """A run that has taken as long as it is told, and is cut off after its first checkpoint if asked."""

    def __init__(self, folder: Path | None = None, spent: float = 0.0, cut: bool = False) -> None:
        super().__init__(folder, checkpoint_seconds=0)
        self.spent, self.cut = spent, cut

    def seconds(self) -> float:
        return self.spent

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        super().save_checkpoint(step, write)
        if self.cut:
            raise InterruptedError


def train(config: GRPOConfig, run: MemoryRun, ahead: EvaluationAhead | None = None) -> list[int]:
    """Steps of the run's points; step 0 has one of validation."""

    def validate(step: int, model: object) -> dict[str, float]:
        return {"eval/accuracy": 0.5}

    model = tiny_model(TOKENIZER)
    train_grpo(model, TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, run, 3, validate=validate, ahead=ahead)
    return [step for step, _ in run.points]


def test_a_run_ends_where_its_time_does() -> None:
    run = Timed(spent=11.0)
    assert train(TEN_SECONDS, run) == [0], "not even one step fits"
    assert [line for line in run.lines if "stops: another step would exceed the budget of 10 seconds" in line]
    assert train(TEN_SECONDS, Timed(spent=1.0)) == train(CONFIG, Timed(spent=1e9)) == [0, 1, 2]
    with pytest.raises(ValueError, match="leaves the number of steps open"):
        GRPOConfig(time_budget_hours=1.0, optimizer=OptimizerConfig(schedule="cosine"))


@pytest.mark.parametrize(("spent", "steps"), [(4.0, [2]), (6.0, [1])])
def test_a_resumed_run_knows_how_long_its_steps_were(spent: float, steps: list[int], tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        train(TEN_SECONDS, Timed(tmp_path, cut=True))
    # One step took `spent`; at 6 s a second one would end at 12, and the run closes with a point of its curve.
    assert train(TEN_SECONDS, Timed(tmp_path, spent)) == steps


@pytest.mark.parametrize(
    ("ahead", "spent"),
    [
        # 16 responses are sampled a step, in 2 s: 0.125 s each; the last validation asks 16 more; 2 % are kept besides.
        (None, False),
        (EvaluationAhead(0, 0.0), False),  # 3 + 3 + 0.2 + 1.5 * 2 s
        (EvaluationAhead(0, 1.0), True),  # 3 + 3 + 0.2 + 1.5 * (1 + 2) s
        (EvaluationAhead(4, 0.0), False),  # 3 + 3 + 0.2 + 1.5 * 2.5 s
        (EvaluationAhead(6, 0.0), True),  # 3 + 3 + 0.2 + 1.5 * 2.75 s
    ],
)
def test_room_is_left_for_the_evaluation_as_sampling_was_measured(ahead: EvaluationAhead | None, spent: bool) -> None:
    run = Timed(spent=3.0)
    budget = TimeBudget(TEN_SECONDS, run, 0, ahead)
    assert not budget.is_spent(), "nothing was measured yet"
    budget.note(step_seconds=3.0, sampling_seconds=2.0)
    assert budget.is_spent() == spent
    if spent and ahead is not None:
        kept = UNSEEN_SHARE * 10 + MARGIN * (ahead.start_seconds + (ahead.responses + 16) * 0.125)
        assert run.lines == [
            f"stops: another step would exceed the budget of 10 seconds, of which {kept:.0f} are "
            "kept for the evaluation"
        ]


def test_a_slow_first_step_is_forgotten_for_the_evaluation_but_not_for_the_next_step() -> None:
    budget = TimeBudget(TEN_SECONDS, Timed(spent=1.0), 0, EvaluationAhead(0, 0.0))
    budget.note(step_seconds=4.0, sampling_seconds=4.0)
    assert budget.is_spent()  # 1 + 4 + 0.2 + 1.5 * 4
    for _ in range(RECENT - 1):
        budget.note(step_seconds=1.0, sampling_seconds=1.0)
    assert budget.is_spent()
    budget.note(step_seconds=1.0, sampling_seconds=1.0)
    assert not budget.is_spent()  # 1 + 4 + 0.2 + 1.5 * 1


def test_the_loop_stops_for_the_evaluation_and_closes_its_curve() -> None:
    """Ten million responses never fit in what is left once sampling was seen to take any time."""
    run = Timed(spent=0.0)
    assert train(TEN_SECONDS, run, EvaluationAhead(10_000_000, 0.0)) == [0, 1, 1]
    assert [sorted(metrics) for _, metrics in run.points][-1] == ["eval/accuracy"]


def test_the_evaluation_ahead_is_counted_as_it_will_be_asked(tmp_path: Path) -> None:
    rows = [Problem(id=f"t{i}", question="", prompt="", ground_truth="", meta={"in_math500": i < 3}) for i in range(10)]
    write_jsonl(tmp_path / "test.jsonl", rows)
    sizes: Sequence[tuple[dict[str, object], int]] = [
        ({}, 10),
        ({"limit": 4}, 4),
        ({"limit": 40, "samples_per_problem": 2}, 20),
        ({"subset": "math500", "limit": 2}, 2),
        ({"subset": "math500", "samples_per_problem": 8}, 24),
    ]
    for settings, responses in sizes:
        size = EvaluationSize.model_validate({"split": "test", **settings})
        assert evaluation_ahead(size, tmp_path, 2.5) == EvaluationAhead(responses, 2.5)
    assert evaluation_ahead(None, tmp_path, 2.5) is None
