"""What the policy-gradient loop can be asked for beyond its default: each against a plain computation or by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_loops import (
    EXAMPLES,
    GRPO,
    PROBLEMS,
    SAMPLING,
    TOKENIZER,
    FragileRun,
    Interrupted,
    MovedPolicy,
    likes_low_letters,
    series,
)
from tiny_models import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from alignment_core import policy_gradient
from alignment_core.config import SamplingConfig
from alignment_core.engine import Engine
from alignment_core.models import frozen_copy
from alignment_core.policy_gradient import train_grpo
from alignment_core.records import Completion, GradedResponse
from alignment_core.rollouts import Rollout, collect_rollout
from alignment_core.runs import MemoryRun
from alignment_core.sampling import PromptRequest, Sampler, make_sampler
from alignment_core.training_config import GRPOConfig, OptimizerConfig

OFF_POLICY = {"epochs_per_rollout_batch": 2, "train_batch_size": 8, "n_grpo_steps": 2}
ATTENTION = pytest.mark.parametrize("attention", ["padded", "auto"])


def configured(**changes: object) -> GRPOConfig:
    return GRPOConfig(**{**GRPO, **changes})


class Biased:
    """The transformers sampler, claiming other log-probs than it drew by."""

    def __init__(self, sampler: Sampler, shift: float) -> None:
        self.sampler, self.shift = sampler, shift

    def sample(self, *arguments: Any, **more: Any) -> list[Completion]:
        done = self.sampler.sample(*arguments, **more)
        return [
            item.model_copy(
                update={"sampler_log_probs": [v + self.shift * (-1) ** n for n, v in enumerate(item.sampler_log_probs)]}
            )
            for item in done
        ]

    def update_weights(self, model: PreTrainedModel) -> None:
        self.sampler.update_weights(model)


def log_probs_of(model: PreTrainedModel, item: Completion) -> Tensor:
    ids = torch.tensor(item.prompt_ids + item.response_ids)
    log_probs = model(ids[None]).logits[0, :-1].log_softmax(-1)
    return log_probs.gather(1, ids[1:, None])[len(item.prompt_ids) - 1 :, 0]


def first_step(config: GRPOConfig, shift: float | None = None) -> MemoryRun:
    """One step of the loop, from a policy that is not the start policy."""
    model = tiny_model(TOKENIZER)
    run = MovedPolicy(model)
    sampler = None if shift is None else Biased(make_sampler(model, TOKENIZER, SAMPLING), shift)
    train_grpo(model, TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, run, 3, sampler=sampler)
    return run


def plain_gradient_norm(
    config: GRPOConfig, token_loss: Callable[[Tensor, Tensor, Completion, Tensor], Tensor], shift: float = 0.0
) -> float:
    """Norm of the gradient of mean_b mean_t token_loss(log_probs, reference, completion, weight), by full logits."""
    policy, reference = tiny_model(TOKENIZER, seed=1), tiny_model(TOKENIZER)
    sampler = Biased(make_sampler(policy, TOKENIZER, SAMPLING), shift)
    rollout = collect_rollout(sampler, TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, 3, 0)
    loss = torch.zeros(())
    for item, weight in zip(rollout.completions, rollout.weights, strict=True):
        with torch.no_grad():
            theirs = log_probs_of(reference, item)
        loss = loss + token_loss(log_probs_of(policy, item), theirs, item, weight).mean() / 16
    loss.backward()
    return torch.stack([weight.grad.norm() for weight in policy.parameters()]).norm().item()


@ATTENTION
@pytest.mark.parametrize("loss_type", ["reinforce_with_baseline", "grpo_clip"])
def test_kl_to_the_start_policy_is_in_the_gradient(loss_type: str, attention: str):
    config = configured(kl_coefficient=0.7, loss_type=loss_type, attention=attention)
    run = first_step(config)

    def loss(ours: Tensor, theirs: Tensor, item: Completion, weight: Tensor) -> Tensor:
        return -weight * ours + 0.7 * ((theirs - ours).exp() - (theirs - ours) - 1)

    expected = plain_gradient_norm(config, loss)
    without = plain_gradient_norm(config, lambda ours, theirs, item, weight: -weight * ours)
    assert abs(expected / without - 1) > 0.05
    assert series(run, "train/grad_norm") == [pytest.approx(expected, rel=1e-3)]
    assert series(run, "train/kl_reference")[0] > 0.01


def test_kl_starts_at_zero_grows_and_a_coefficient_holds_it_back():
    drift = {}
    for coefficient in (1e-9, 1.0):
        config = configured(n_grpo_steps=6, kl_coefficient=coefficient, optimizer=OptimizerConfig(learning_rate=1e-2))
        run = MemoryRun()
        train_grpo(tiny_model(TOKENIZER), TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, run, 3)
        drift[coefficient] = series(run, "train/kl_reference")
        assert drift[coefficient][0] == pytest.approx(0, abs=1e-6)
    assert drift[1e-9][-1] > 0.05
    assert drift[1.0][-1] < drift[1e-9][-1] / 2


def test_with_a_kl_penalty_groups_without_advantage_move_the_policy_too():
    def never(responses: Sequence[str], truths: Sequence[str]) -> list[GradedResponse]:
        return [GradedResponse(format_reward=0.0, answer_reward=0.0, reward=0.0) for _ in responses]

    model = tiny_model(TOKENIZER)
    run = MovedPolicy(model)
    train_grpo(model, TOKENIZER, PROBLEMS, configured(kl_coefficient=0.5), SAMPLING, never, run, 3)
    assert series(run, "train/zero_variance_share") == [1.0]
    assert series(run, "train/grad_norm")[0] > 1e-3


def test_the_reference_is_scored_once_per_rollout_batch_and_never_trained(monkeypatch: pytest.MonkeyPatch):
    frozen: list[PreTrainedModel] = []
    original = policy_gradient.frozen_copy
    monkeypatch.setattr(policy_gradient, "frozen_copy", lambda *given: frozen.append(original(*given)) or frozen[-1])
    model = tiny_model(TOKENIZER)
    config = configured(kl_coefficient=0.1, loss_type="grpo_clip", **OFF_POLICY, micro_batch_tokens=100_000)
    bodies: list[bool] = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: bodies.append(torch.is_grad_enabled()) if frozen and module is frozen[0].base_model else None
    )
    train_grpo(model, TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, MemoryRun(), 3)
    hook.remove()
    assert bodies == [False, False]  # two rollout batches, eight updates
    assert len(frozen) == 1
    for weight, start in zip(frozen[0].parameters(), tiny_model(TOKENIZER).parameters(), strict=True):
        assert torch.equal(weight, start)
        assert not weight.requires_grad


@pytest.mark.parametrize("tied", [True, False])
def test_the_reference_is_held_in_the_compute_type_and_scores_as_the_policy_does(tied: bool):
    """Half the bytes of all that autocast would round anyway, and not one bit of a log-prob."""
    model = tiny_model(TOKENIZER)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    engine = Engine(model, TOKENIZER, configured(), "bfloat16")
    reference = frozen_copy(model, "bfloat16")
    with torch.no_grad():
        for _, batch in engine.micro_batches(EXAMPLES):
            assert torch.equal(engine.scores(batch).log_probs, engine.scores(batch, model=reference).log_probs)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    narrow = {name for name, weight in reference.named_parameters() if weight.dtype == torch.bfloat16}
    assert narrow == {name for name in sizes if name.endswith("proj.weight") or name == "lm_head.weight"}
    held = sum(weight.nbytes for weight in reference.parameters())
    assert held == 4 * sum(sizes.values()) - 2 * sum(sizes[name] for name in narrow)
    assert not any(weight.requires_grad or weight.grad is not None for weight in reference.parameters())
    assert (reference.lm_head.weight is reference.model.embed_tokens.weight) == tied
    own = {weight.data_ptr() for weight in model.parameters()}
    assert not own & {weight.data_ptr() for weight in reference.parameters()}


def test_the_reference_has_no_optimizer_state_and_the_policy_s_weights_stay_float32():
    model = tiny_model(TOKENIZER)
    config = configured(kl_coefficient=0.1, n_grpo_steps=1)
    learner = policy_gradient._Learner(model, TOKENIZER, config, SAMPLING, 3, "bfloat16")
    trained = {weight for group in learner.optimizer.param_groups for weight in group["params"]}
    assert trained == set(model.parameters())
    assert {weight.dtype for weight in trained} == {torch.float32}
    run = MemoryRun()
    train_grpo(model, TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, run, 3, "bfloat16")
    # The policy is the reference still: what rounding leaves of the estimate, which is quadratic in the difference.
    assert series(run, "train/kl_reference")[0] < 1e-4


def test_a_resumed_run_is_pulled_to_the_same_reference(tmp_path: Path):
    config = configured(kl_coefficient=0.5, n_grpo_steps=4, dynamic_sampling_rounds=1)
    ends = []
    for run in (FragileRun(None), FragileRun(tmp_path, dies_at=3), FragileRun(tmp_path)):
        model = tiny_model(TOKENIZER)
        try:
            train_grpo(model, TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, run, 3)
        except Interrupted:
            continue
        ends.append((model, series(run, "train/kl_reference")[-1]))
    assert ends[0][1] == ends[1][1]
    for one, other in zip(ends[0][0].parameters(), ends[1][0].parameters(), strict=True):
        assert torch.equal(one, other)


@ATTENTION
def test_importance_weights_multiply_the_loss_of_each_token(attention: str):
    config = configured(importance_cap=1.2, attention=attention)

    def loss(ours: Tensor, _: Tensor, item: Completion, weight: Tensor) -> Tensor:
        trust = (ours.detach() - torch.tensor(item.sampler_log_probs)).exp().clamp(max=1.2)
        assert trust.min() < 0.7
        return -weight * ours * trust

    expected = plain_gradient_norm(config, loss, shift=0.5)
    without = plain_gradient_norm(config, lambda ours, _, item, weight: -weight * ours, shift=0.5)
    assert abs(expected / without - 1) > 0.05
    run = first_step(config, shift=0.5)
    assert series(run, "train/grad_norm") == [pytest.approx(expected, rel=1e-3)]
    assert 0.3 < series(run, "train/importance_capped")[0] < 0.6
    assert series(run, "train/sampler_gap")[0] == pytest.approx(0.5, abs=1e-3)
    assert series(run, "train/sampler_ratio_max")[0] == pytest.approx(2.718281828**0.5, rel=1e-3)


class Texts:
    """Answers the n-th request with the n-th text of a round; keeps no log-probs."""

    def __init__(self, *rounds: str) -> None:
        self.rounds = list(rounds)
        self.seeds: list[int] = []

    def sample(
        self,
        requests: Sequence[PromptRequest],
        config: SamplingConfig,
        on_progress: object = None,
        on_finished: object = None,
    ) -> list[Completion]:
        self.seeds += [request.seed for request in requests]
        return [
            Completion(
                problem_id=request.problem_id,
                sample_index=request.sample_index,
                prompt_ids=request.prompt_ids,
                response_ids=[1] * (2 if text.isupper() else 6),
                text=text,
                finish_reason="stop" if text.isupper() else "length",
            )
            for request, text in zip(requests, self.rounds.pop(0), strict=True)
        ]

    def update_weights(self, model: PreTrainedModel) -> None:
        pass


def rollout_of(sampler: Texts, **changes: object) -> Rollout:
    config = configured(rollout_batch_size=4, train_batch_size=4, group_size=2, use_std_normalization=False, **changes)
    return collect_rollout(sampler, TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, 0, 0)


def test_importance_weights_need_the_sampler_s_log_probs():
    config = configured(importance_cap=2.0)
    with pytest.raises(ValueError, match="this sampler keeps none: set it to null"):
        train_grpo(
            tiny_model(TOKENIZER), TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, MemoryRun(), 3,
            sampler=Texts("AAAA" * 4),
        )  # fmt: skip


def test_dynamic_sampling_replaces_groups_of_equal_reward():
    # Rounds of two groups: none, one and two of unequal reward.
    sampler = Texts("AAzz", "Azzz", "Azzz")
    rollout = rollout_of(sampler, dynamic_sampling_rounds=5)
    assert [item.text for item in rollout.completions] == list("AzAz")
    assert rollout.weights.tolist() == [0.5, -0.5, 0.5, -0.5]
    assert [problem.id for problem in rollout.problems] == [item.problem_id for item in rollout.completions]
    assert rollout.metrics["train/groups_sampled"] == 6
    assert rollout.metrics["train/zero_variance_share"] == pytest.approx(4 / 6)
    assert rollout.metrics["train/reward"] == pytest.approx(4 / 12)
    assert rollout.metrics["train/tokens"] == 2 * (2 + 6)
    assert rollout.metrics["train/tokens_sampled"] == 4 * 2 + 8 * 6
    assert len(set(sampler.seeds)) == 12


def test_dynamic_sampling_ends_when_there_are_enough_and_when_the_rounds_do():
    enough = Texts("AzzA", "never")
    assert rollout_of(enough, dynamic_sampling_rounds=1).metrics["train/groups_sampled"] == 2
    short = rollout_of(Texts("AAzz", "zzAz"), dynamic_sampling_rounds=1)
    # One group teaches; the first of the others fills the batch, so that the denominator stays.
    assert [item.text for item in short.completions] == list("AAAz")
    assert short.weights.tolist() == [0.0, 0.0, 0.5, -0.5]
    assert rollout_of(Texts("AAzz")).metrics["train/groups_sampled"] == 2


def test_overlong_responses_lose_reward():
    # `z` has 6 of 6 tokens: at the end of the buffer. Rewards 1, 0 - 0.5 and 0 - 0.5 twice.
    rollout = rollout_of(Texts("Azzz"), overlong_buffer=2, overlong_penalty=0.5)
    assert rollout.weights.tolist() == [0.75, -0.75, 0.0, 0.0]
    assert rollout.metrics["train/reward"] == 0.25
    assert rollout.metrics["train/overlong_penalty"] == pytest.approx(3 * 0.5 / 4)
    assert rollout_of(Texts("Azzz")).metrics["train/overlong_penalty"] == 0.0


def test_a_group_that_differs_in_length_alone_is_replaced():
    # The first group is wrong twice, once short and once long: rewards 0 and 0, with the penalty 0 and -0.5.
    sampler = Texts("ÉzAz", "Azzz")
    rollout = rollout_of(sampler, dynamic_sampling_rounds=5, overlong_buffer=2, overlong_penalty=0.5)
    assert [item.text for item in rollout.completions] == list("AzAz")
    assert rollout.weights.tolist() == [0.75, -0.75, 0.75, -0.75]
    assert rollout.metrics["train/zero_variance_share"] == 0.5
    assert not sampler.rounds


def test_an_overlong_buffer_without_room_is_refused():
    with pytest.raises(ValueError, match=r"take less than sampling\.max_tokens, which is 6"):
        first_step(configured(overlong_buffer=6))


def test_leave_one_out_weighs_by_the_others():
    rollout = rollout_of(Texts("AzAA"), baseline="leave_one_out")
    assert rollout.weights.tolist() == [1.0, -1.0, 0.0, 0.0]
    assert rollout.metrics["train/advantage_max"] == 1.0
    assert rollout.metrics["train/advantage_min"] == -1.0
    assert rollout.metrics["train/advantage_mean"] == 0.0
    assert rollout.metrics["train/advantage_std"] == pytest.approx((2 / 3) ** 0.5)
    assert rollout.metrics["train/reward_std"] == 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "grpo_clip", "clip_low": 0.05, "clip_high": 0.1, "length_normalization": "token_mean"},
        {"loss_type": "gspo", "clip_low": 0.01, "clip_high": 0.02},
        {"loss_type": "cispo", "importance_cap": 1.1},
        {"loss_type": "grpo_no_clip", "kl_coefficient": 0.3, "length_normalization": "constant"},
    ],
)
@ATTENTION
def test_off_policy_variants_do_not_depend_on_the_micro_batch(changes: dict[str, Any], attention: str):
    ends = []
    for tokens in (100_000, 20):
        config = configured(**OFF_POLICY, **changes, micro_batch_tokens=tokens, attention=attention)
        model, run = tiny_model(TOKENIZER), MemoryRun()
        train_grpo(model, TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, run, 3)
        ends.append((model, run))
    for name in ("loss", "grad_norm", "ratio_mean", "ratio_max", "clip_fraction_low", "clip_fraction_high"):
        ours, theirs = (series(run, f"train/{name}") for _, run in ends)
        assert ours == pytest.approx(theirs, rel=2e-2, abs=2e-4), name
    for one, other in zip(ends[0][0].parameters(), ends[1][0].parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-3)
    assert series(ends[0][1], "train/ratio_max")[0] > 1.001
