"""Policy gradients: the gradient against a plain autograd one, its invariances, and that a reward rises."""

from collections.abc import Sequence

import pytest
import torch
from tiny_loops import GRPO, PROBLEMS, SAMPLING, TOKENIZER, likes_low_letters, series
from tiny_models import tiny_model
from transformers import PreTrainedModel

from alignment_core.config import SamplingConfig
from alignment_core.overlap import Grader
from alignment_core.policy_gradient import train_grpo, updates_per_step
from alignment_core.records import Completion, GradedResponse, Problem
from alignment_core.rollouts import collect_rollout, completion_metrics, completion_rows, draw_problems
from alignment_core.runs import MemoryRun
from alignment_core.sampling import PromptRequest, make_sampler
from alignment_core.training_config import GRPOConfig, OptimizerConfig
from alignment_core.validation import make_validator, validation_metrics

CONFIG = GRPOConfig(**{**GRPO, "n_grpo_steps": 2, "validate_every": 2})
OFF_POLICY = CONFIG.model_copy(update={"loss_type": "grpo_clip", "epochs_per_rollout_batch": 2, "train_batch_size": 8})


def never(responses: Sequence[str], truths: Sequence[str]) -> list[GradedResponse]:
    return [GradedResponse(format_reward=0.0, answer_reward=0.0, reward=0.0) for _ in responses]


def trained(config: GRPOConfig = CONFIG, grade: Grader = likes_low_letters) -> tuple[PreTrainedModel, MemoryRun]:
    model, run = tiny_model(TOKENIZER), MemoryRun()
    train_grpo(model, TOKENIZER, PROBLEMS, config, SAMPLING, grade, run, seed=3)
    return model, run


def plain_gradient_norm(config: GRPOConfig) -> float:
    """Norm of the first step's REINFORCE gradient, one sequence at a time, from full logits."""
    model = tiny_model(TOKENIZER)
    sampler = make_sampler(model, TOKENIZER, SAMPLING)
    rollout = collect_rollout(sampler, TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, 3, 0)
    tokens = sum(len(item.response_ids) for item in rollout.completions)
    loss = torch.zeros(())
    for item, weight in zip(rollout.completions, rollout.weights, strict=True):
        ids = torch.tensor(item.prompt_ids + item.response_ids)
        log_probs = model(ids[None]).logits[0, :-1].log_softmax(-1)
        chosen = log_probs.gather(1, ids[1:, None])[len(item.prompt_ids) - 1 :, 0]
        divisor = {
            "masked_mean": len(item.response_ids) * 16,
            "masked_normalize": (config.normalize_constant or 0) * 16,
            "constant": SAMPLING.max_tokens * 16,
            "token_mean": tokens,
        }[config.length_normalization]
        loss = loss - weight * chosen.sum() / divisor
    loss.backward()
    return torch.stack([weight.grad.norm() for weight in model.parameters()]).norm().item()


@pytest.mark.parametrize("normalization", ["masked_mean", "masked_normalize", "token_mean", "constant"])
@pytest.mark.parametrize("loss_type", ["no_baseline", "reinforce_with_baseline", "grpo_clip"])
def test_first_gradient_is_the_plain_policy_gradient(normalization: str, loss_type: str):
    update = {"length_normalization": normalization, "loss_type": loss_type, "n_grpo_steps": 1}
    update["normalize_constant"] = 3.0 if normalization == "masked_normalize" else None
    config = CONFIG.model_copy(update=update)
    _, run = trained(config)
    assert series(run, "train/grad_norm") == [pytest.approx(plain_gradient_norm(config), rel=1e-3)]


@pytest.mark.parametrize("base", [CONFIG, OFF_POLICY])
def test_micro_batch_size_changes_nothing(base: GRPOConfig):
    whole, run_whole = trained(base)
    parts, run_parts = trained(base.model_copy(update={"micro_batch_tokens": 20}))
    for name in ("train/loss", "train/grad_norm", "train/entropy", "train/ratio_mean"):
        assert series(run_parts, name) == pytest.approx(series(run_whole, name), rel=1e-3, abs=1e-5)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, atol=5e-4)


def test_a_reward_rises():
    config = CONFIG.model_copy(
        update={
            "n_grpo_steps": 15,
            "rollout_batch_size": 64,
            "train_batch_size": 64,
            "group_size": 16,
            "optimizer": OptimizerConfig(learning_rate=2e-2),
        }
    )
    run = MemoryRun()
    short = SamplingConfig(max_tokens=2, batch_size=64)
    train_grpo(tiny_model(TOKENIZER), TOKENIZER, PROBLEMS, config, short, likes_low_letters, run, seed=3)
    rewards = series(run, "train/reward")
    assert sum(rewards[:2]) / 2 < 0.5
    assert sum(rewards[-3:]) / 3 > 0.9


def test_without_any_reward_nothing_moves():
    model, run = trained(grade=never)
    assert series(run, "train/grad_norm") == [0.0, 0.0]
    assert series(run, "train/zero_variance_share") == [1.0, 1.0]
    for now, before in zip(model.parameters(), tiny_model(TOKENIZER).parameters(), strict=True):
        assert torch.equal(now, before)


def test_on_policy_the_ratio_is_one_and_the_sampler_agrees():
    _, run = trained()
    assert series(run, "train/ratio_mean") == [1.0, 1.0]
    assert series(run, "train/clip_fraction_low") == series(run, "train/clip_fraction_high") == [0.0, 0.0]
    assert max(series(run, "train/sampler_gap")) < 1e-4
    assert min(series(run, "train/entropy")) > 0.1


@pytest.mark.parametrize("base", [CONFIG, OFF_POLICY])
def test_the_trainer_scores_under_the_temperature_and_the_vocabulary_it_was_sampled_with(base: GRPOConfig):
    run, model = MemoryRun(), tiny_model(TOKENIZER, vocab_size=400)
    with torch.no_grad():
        model.lm_head.weight[len(TOKENIZER) :] = model.lm_head.weight[:1] * 2
    warm = SAMPLING.model_copy(update={"temperature": 0.6})
    train_grpo(model, TOKENIZER, PROBLEMS, base, warm, likes_low_letters, run, seed=3)
    assert max(series(run, "train/sampler_gap")) < 1e-4


def test_bfloat16_compute_leaves_float32_weights_and_follows_the_policy():
    model, run = tiny_model(TOKENIZER), MemoryRun()
    # The sampler stays wide, so that the gap is the trainer's rounding.
    train_grpo(
        model, TOKENIZER, PROBLEMS, CONFIG, SAMPLING, likes_low_letters, run, seed=3, compute_dtype="bfloat16",
        sampler=make_sampler(model, TOKENIZER, SAMPLING),
    )  # fmt: skip
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert 1e-4 < max(series(run, "train/sampler_gap")) < 0.05


def test_dropout_is_off_in_the_loop():
    model = tiny_model(TOKENIZER)
    model.model.layers[0].self_attn.attention_dropout = 0.5
    run = MemoryRun()
    train_grpo(model, TOKENIZER, PROBLEMS, CONFIG, SAMPLING, likes_low_letters, run, seed=3)
    assert max(series(run, "train/sampler_gap")) < 1e-4


class Recorder:
    """A sampler that notes what the loop asks of it, and with which seeds."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._sampler = make_sampler(model, TOKENIZER, SAMPLING)
        self.calls: list[str] = []
        self.seeds: list[int] = []

    def sample(
        self,
        requests: Sequence[PromptRequest],
        config: SamplingConfig,
        on_progress: object = None,
        on_finished: object = None,
    ) -> list[Completion]:
        self.calls.append(f"sample after {config.min_tokens}")
        self.seeds += [request.seed for request in requests]
        return self._sampler.sample(requests, config)

    def update_weights(self, model: PreTrainedModel) -> None:
        self.calls.append("update")


def test_every_step_samples_the_newest_weights_with_seeds_of_its_own():
    model = tiny_model(TOKENIZER)
    recorder, config = Recorder(model), CONFIG.model_copy(update={"min_tokens": 3})
    train_grpo(
        model, TOKENIZER, PROBLEMS[:2], config, SAMPLING, likes_low_letters, MemoryRun(), seed=3, sampler=recorder
    )
    assert recorder.calls == ["update", "sample after 3"] * 2
    assert len(set(recorder.seeds)) == len(recorder.seeds) == 32


def test_validation_samples_the_weights_it_is_given():
    model = tiny_model(TOKENIZER)
    recorder = Recorder(model)
    validate = make_validator(PROBLEMS, 3, TOKENIZER, SAMPLING, likes_low_letters, MemoryRun(), 1, sampler=recorder)
    validate(0, model)
    assert recorder.calls == ["update", "sample after 0"]


def test_off_policy_updates_move_the_ratio_away_from_one():
    eager = OFF_POLICY.model_copy(update={"optimizer": OptimizerConfig(learning_rate=2e-2)})
    _, run = trained(eager)
    assert updates_per_step(eager) == 4
    assert abs(series(run, "train/ratio_mean")[0] - 1) > 1e-3
    assert max(series(run, "train/clip_fraction_low") + series(run, "train/clip_fraction_high")) > 0
    assert max(series(run, "train/sampler_gap")) < 1e-4


def test_off_policy_schedule_counts_every_update():
    schedule = OptimizerConfig(learning_rate=8e-3, schedule="linear")
    _, run = trained(OFF_POLICY.model_copy(update={"optimizer": schedule}))
    assert series(run, "train/learning_rate") == [pytest.approx(5e-3), pytest.approx(1e-3)]


def test_metrics_rows_and_validation_points():
    run, model, grade = MemoryRun(), tiny_model(TOKENIZER), likes_low_letters
    validate = make_validator(PROBLEMS, 3, TOKENIZER, SAMPLING, grade, run, 1)
    train_grpo(model, TOKENIZER, PROBLEMS, CONFIG, SAMPLING, grade, run, 3, validate=validate)
    assert [step for step, _ in run.points] == [0, 1, 2]
    assert len(series(run, "eval/accuracy")) == len(series(run, "eval/entropy")) == 2
    assert [(name, step) for name, step, _ in run.rows] == [("validation", 0), ("rollouts", 2), ("validation", 2)]
    assert len(run.rows[1][2]) == CONFIG.rollouts_logged
    missing = {f"train/{name}" for name in ("loss", "reward", "advantage_std", "tokens", "learning_rate")} | {
        f"time/{name}" for name in ("generate", "grade", "update")
    }
    assert missing <= run.points[1][1].keys()


def test_validation_seeds_do_not_depend_on_the_step():
    run = MemoryRun()
    validate = make_validator(PROBLEMS, 9, TOKENIZER, SAMPLING, likes_low_letters, run, 1)
    model = tiny_model(TOKENIZER)
    assert validate(0, model) == validate(7, model)
    assert make_validator(PROBLEMS, 0, TOKENIZER, SAMPLING, likes_low_letters, run, 1) is None


def test_draws_cover_every_problem_once_per_epoch():
    drawn = [problem.id for step in range(5) for problem in draw_problems(PROBLEMS, 2, seed=1, step=step)]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [problem.id for problem in PROBLEMS]
    assert drawn[:5] != drawn[5:]
    assert draw_problems(PROBLEMS, 2, seed=1, step=3) == draw_problems(PROBLEMS, 2, seed=1, step=3)


def test_more_draws_than_problems_repeat_them_with_new_samples():
    sampler = make_sampler(tiny_model(TOKENIZER), TOKENIZER, SAMPLING)
    rollout = collect_rollout(sampler, TOKENIZER, PROBLEMS[:1], CONFIG, SAMPLING, likes_low_letters, 1, 0)
    assert len({tuple(item.response_ids) for item in rollout.completions}) == 16


class FixedSampler:
    """Answers the n-th request with the n-th text."""

    def __init__(self, texts: str) -> None:
        self.texts = texts

    def sample(
        self,
        requests: Sequence[PromptRequest],
        config: SamplingConfig,
        on_progress: object = None,
        on_finished: object = None,
    ) -> list[Completion]:
        return [
            Completion(
                problem_id=request.problem_id,
                sample_index=request.sample_index,
                prompt_ids=request.prompt_ids,
                response_ids=[1] * (1 + index % 2),
                text=text,
                finish_reason="stop" if index else "length",
            )
            for index, (request, text) in enumerate(zip(requests, self.texts, strict=True))
        ]

    def update_weights(self, model: PreTrainedModel) -> None:
        pass


def test_groups_are_by_position_even_where_prompts_are_equal():
    twins = [Problem(id=name, question="", prompt="same", ground_truth="a") for name in ("x", "y")]
    config = CONFIG.model_copy(update={"rollout_batch_size": 4, "train_batch_size": 4, "group_size": 2})
    rollout = collect_rollout(FixedSampler("AAAz"), TOKENIZER, twins, config, SAMPLING, likes_low_letters, 0, 0)
    root = 0.5**0.5
    assert rollout.weights.tolist() == pytest.approx([0, 0, root, -root], abs=1e-5)
    assert rollout.metrics["train/zero_variance_share"] == 0.5
    assert rollout.metrics["train/reward"] == 0.75
    assert rollout.metrics["train/mean_length"] == 1.5
    assert rollout.metrics["train/mean_length_correct"] == pytest.approx(4 / 3)
    assert rollout.metrics["train/mean_length_incorrect"] == 2
    assert rollout.metrics["train/truncation_rate"] == 0.25


def test_a_mean_over_nothing_is_left_out_and_entropy_weighs_tokens():
    requests = [PromptRequest("p", 0, [1], 0), PromptRequest("p", 1, [1], 0)]
    done = FixedSampler("zz").sample(requests, SAMPLING)
    grades = likes_low_letters(["z", "z"], ["", ""])
    assert "train/mean_length_correct" not in completion_metrics(done, grades)
    assert "eval/entropy" not in validation_metrics(done, grades)
    measured = [item.model_copy(update={"mean_entropy": value}) for item, value in zip(done, (3.0, 1.5), strict=True)]
    assert validation_metrics(measured, grades)["eval/entropy"] == pytest.approx(2.0)
    assert completion_rows(PROBLEMS[:2], done, grades, 0) == []


@pytest.mark.parametrize("change", [{"top_p": 0.9}, {"temperature": 0.0}])
def test_sampling_that_bends_the_policy_is_refused(change: dict[str, float]):
    bent = SAMPLING.model_copy(update=change)
    with pytest.raises(ValueError, match="must follow the policy itself"):
        train_grpo(tiny_model(TOKENIZER), TOKENIZER, PROBLEMS, CONFIG, bent, never, MemoryRun(), 0)
