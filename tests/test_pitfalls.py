"""The known ways to get policy gradients subtly wrong, one test each, over the real rooms and real tiny models."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_loops import (
    EOS_ID,
    EXAMPLES,
    GRPO,
    INVARIANCE,
    OFF_POLICY,
    PROBLEMS,
    SAMPLING,
    TOKENIZER,
    Gradients,
    likes_low_letters,
    loop_and_run,
    plain_log_probs,
    recorded_losses,
    run_grpo,
    scripted,
    series,
    split_into,
)
from tiny_models import byte_tokenizer, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from alignment_core import engine, epochs, policy_gradient, sft
from alignment_core.batching import TokenSequence, collate
from alignment_core.logprobs import response_log_probs
from alignment_core.optimization import make_optimizer
from alignment_core.records import Completion, GradedResponse, Problem
from alignment_core.rollouts import collect_rollout
from alignment_core.runs import MemoryRun
from alignment_core.sampling import build_requests, make_sampler
from alignment_core.training_config import GRPOConfig, OptimizerConfig, SFTConfig


def test_token_ids_in_token_ids_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Pieces whose text the tokenizer would spell otherwise: ids made of the text again would be others.
    tokenizer = byte_tokenizer(*(a + b for a in "qrstuvwx" for b in "qrstuvwx"))
    model = tiny_model(tokenizer)
    trained: list[TokenSequence] = []
    original = engine.collate
    monkeypatch.setattr(engine, "collate", lambda rows, *more: trained.extend(rows) or original(rows, *more))
    sampled: list[Completion] = []
    sampler = make_sampler(model, tokenizer, SAMPLING)
    original_sample = sampler.sample
    monkeypatch.setattr(sampler, "sample", lambda *a, **k: sampled.extend(done := original_sample(*a, **k)) or done)
    config, run = GRPOConfig(**GRPO), MemoryRun()
    policy_gradient.train_grpo(model, tokenizer, PROBLEMS, config, SAMPLING, likes_low_letters, run, 3, sampler=sampler)
    assert any(tokenizer.encode(item.text) != item.response_ids for item in sampled)
    expected = sorted((item.prompt_ids, item.response_ids) for item in sampled)
    assert sorted((one.prompt_ids, one.response_ids) for one in trained) == expected
    assert all(item.prompt_ids == tokenizer.encode("q" * len(item.prompt_ids)) for item in sampled)


def test_stop_string_is_kept_in_the_ids() -> None:
    piece = byte_tokenizer("r>!").convert_tokens_to_ids("r>!")
    script = [*TOKENIZER.encode("8 </answe"), piece, *TOKENIZER.encode("zz")]
    done = scripted(script, pieces=("r>!",))
    # The token that completed the stop is kept whole, trained on, and followed by nothing, an EOS least of all.
    assert done.response_ids == script[:-2]
    assert "</answer>" in done.text
    mask = collate([TokenSequence(done.prompt_ids, done.response_ids)], EOS_ID).response_mask
    assert int(mask.sum()) == len(done.response_ids)


def test_finish_reasons() -> None:
    stopped = scripted(TOKENIZER.encode("a</answer>b"))
    ended = scripted([*TOKENIZER.encode("a"), EOS_ID, *TOKENIZER.encode("b")])
    cut = scripted(TOKENIZER.encode("a" * 30))
    assert (stopped.finish_reason, stopped.text) == ("stop", "a</answer>")
    assert (ended.finish_reason, ended.text, ended.response_ids[-1]) == ("eos", "a", EOS_ID)
    assert (cut.finish_reason, len(cut.response_ids)) == ("length", 12)
    # A stop string on the very last token allowed is a stop: counting by "ends in EOS" would call it truncated.
    assert scripted(TOKENIZER.encode("a</answer>"), max_tokens=10).finish_reason == "stop"


def test_masks_come_from_lengths_where_eos_is_the_padding() -> None:
    # EOS inside a prompt, at the end of a response, twice in one, and as padding.
    sequences = [
        TokenSequence([5, EOS_ID, 6], [7, EOS_ID]),
        TokenSequence([5], [EOS_ID, EOS_ID, 8, EOS_ID]),
        TokenSequence([5, 6], [7]),
    ]
    batch = collate(sequences, pad_id=EOS_ID)
    assert batch.response_mask.tolist() == [
        [False, False, True, True],
        [True, True, True, True],
        [False, True, False, False],
    ]
    ids = [labels[mask].tolist() for labels, mask in zip(batch.labels, batch.response_mask, strict=True)]
    assert ids == [one.response_ids for one in sequences]


@pytest.mark.parametrize("attention", ["padded", "auto"])
def test_shift_log_prob_of_a_token_is_from_the_logits_before_it(attention: str) -> None:
    model = tiny_model(TOKENIZER)
    room = engine.Engine(model, TOKENIZER, SFTConfig(attention=attention))
    plain = tiny_model(TOKENIZER)
    for rows, batch in room.micro_batches(EXAMPLES):
        scores = room.scores(batch)
        for row, values, mask in zip(rows, scores.log_probs, batch.response_mask, strict=True):
            torch.testing.assert_close(values[mask], plain_log_probs(plain, EXAMPLES[row]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{"kl_coefficient": 0.1}, {"kl_coefficient": 0.1, **OFF_POLICY}])
def test_temperature_is_in_every_log_prob(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, sampling = tiny_model(TOKENIZER), SAMPLING.model_copy(update={"temperature": 0.6})
    seen: list[tuple[Tensor, Tensor]] = []
    original = policy_gradient.kl_to_reference
    monkeypatch.setattr(
        policy_gradient, "kl_to_reference", lambda ours, theirs: seen.append((ours, theirs)) or original(ours, theirs)
    )
    [request] = build_requests(PROBLEMS[:1], TOKENIZER, 1, 3)
    [done] = make_sampler(model, TOKENIZER, sampling).sample([request], sampling)
    sequence = TokenSequence(done.prompt_ids, done.response_ids)
    tempered = plain_log_probs(model, sequence, 0.6)
    # The sampler's own, then (by the gap to it) the policy's or the old policy's, then the reference's.
    torch.testing.assert_close(torch.tensor(done.sampler_log_probs), tempered, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(tempered, plain_log_probs(model, sequence), atol=1e-2)
    run = run_grpo(model, sampling, **changes)
    assert max(series(run, "train/sampler_gap_max")) < 1e-4
    ours, theirs = seen[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    # The entropy, too, is that of the distribution the sampler drew from.
    assert series(run, "train/entropy")[0] < series(run_grpo(tiny_model(TOKENIZER), **changes), "train/entropy")[0]


def test_padded_vocabulary_ids_are_neither_sampled_nor_given_probability() -> None:
    model = tiny_model(TOKENIZER, vocab_size=400)
    with torch.no_grad():
        model.lm_head.weight[len(TOKENIZER) :] = model.lm_head.weight[:1] * 3
    padding = model.lm_head.weight[len(TOKENIZER) :].clone()
    requests = build_requests(PROBLEMS, TOKENIZER, 8, 3)
    done = make_sampler(model, TOKENIZER, SAMPLING).sample(requests, SAMPLING)
    assert max(max(item.response_ids) for item in done) < len(TOKENIZER)
    run = run_grpo(model)
    assert max(series(run, "train/sampler_gap_max")) < 1e-4
    assert torch.equal(model.lm_head.weight[len(TOKENIZER) :], padding)


def test_log_softmax_is_float32_whatever_the_logits_are() -> None:
    model = tiny_model(TOKENIZER)
    with torch.no_grad():
        model.model.norm.weight *= 8  # logits of some tens, where bfloat16 steps are of an eighth
    batch = collate(EXAMPLES[:3], EOS_ID)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        scores = response_log_probs(model, batch, with_entropy=True)
        logits = model(batch.input_ids).logits
    assert logits.dtype == torch.bfloat16
    wide, narrow = (
        values.log_softmax(-1).gather(-1, batch.labels[..., None]).squeeze(-1)[batch.response_mask]
        for values in (logits.float(), logits)
    )
    got = scores.log_probs[batch.response_mask]
    assert scores.log_probs.dtype == scores.entropy.dtype == torch.float32
    torch.testing.assert_close(got, wide, rtol=1e-5, atol=1e-5)
    assert (narrow.float() - wide).abs().max() > 1e-2


def test_zero_variance_groups_get_exactly_zero() -> None:
    def generous(responses: Sequence[str], truths: Sequence[str]) -> list[GradedResponse]:
        return [GradedResponse(format_reward=1.0, answer_reward=0.1, reward=0.1) for _ in responses]

    # The float32 mean of seven 0.1 is not 0.1; over std + eps the difference would be no small advantage.
    changes = {"rollout_batch_size": 14, "train_batch_size": 14, "group_size": 7}
    config = GRPOConfig(**{**GRPO, **changes})
    model, run = tiny_model(TOKENIZER), MemoryRun()
    policy_gradient.train_grpo(model, TOKENIZER, PROBLEMS, config, SAMPLING, generous, run, 3)
    assert series(run, "train/advantage_max") == series(run, "train/advantage_min") == [0.0]
    assert series(run, "train/grad_norm") == [0.0]
    for now, before in zip(model.parameters(), tiny_model(TOKENIZER).parameters(), strict=True):
        assert torch.equal(now, before)


def test_grouping_is_by_index_where_prompts_are_equal() -> None:
    twins = [Problem(id=name, question="", prompt="same", ground_truth=name) for name in ("x", "y")]

    def right_for_x(responses: Sequence[str], truths: Sequence[str]) -> list[GradedResponse]:
        values = [float(truth == "x" or text[:1] < "a") for text, truth in zip(responses, truths, strict=True)]
        return [GradedResponse(format_reward=1.0, answer_reward=value, reward=value) for value in values]

    config = GRPOConfig(**{**GRPO, "group_size": 8, "use_std_normalization": False})
    sampler = make_sampler(tiny_model(TOKENIZER), TOKENIZER, SAMPLING)
    rollout = collect_rollout(sampler, TOKENIZER, twins, config, SAMPLING, right_for_x, 3, 0)
    by_problem: dict[str, list[float]] = {"x": [], "y": []}
    for problem, weight in zip(rollout.problems, rollout.weights.tolist(), strict=True):
        by_problem[problem.id].append(weight)
    # Merged by their prompt, x's group would not be all zero.
    assert by_problem["x"] == [0.0] * 8
    assert len(set(by_problem["y"])) == 2
    assert sum(by_problem["y"]) == 0.0


@pytest.mark.parametrize(("loop", "normalization"), INVARIANCE)
def test_one_denominator_for_the_optimizer_batch(
    loop: str, normalization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient are the same for micro-batches of 1, 2, 5, 8 sequences, all, and packed rows."""
    found = {}
    for attention, size in [("padded", 99), *(("padded", n) for n in (1, 2, 5, 8)), ("auto", 2), ("auto", 99)]:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "plan_batches", split_into(size))
            module, start = loop_and_run(loop, attention, normalization)
            gradients = Gradients(patch, module)
            losses = series(start(), "train/loss")
            found[attention, size] = losses, gradients.kept
    losses, kept = found.pop(("padded", 99))
    assert len(kept) == {"sft": 3, "dpo": 3, "grpo": 1, "grpo off-policy": 4}[loop]
    for case, (their_losses, their_kept) in found.items():
        assert their_losses == pytest.approx(losses, rel=1e-4, abs=1e-6), case
        for number, (ours, theirs) in enumerate(zip(kept, their_kept, strict=True)):
            # Updates after the first start from weights that differ by rounding.
            scale = torch.cat([one.flatten() for one in ours]).abs().max()
            for one, other in zip(ours, theirs, strict=True):
                assert (one - other).abs().max() < scale * (1e-4 if number == 0 else 1e-2), (case, number)


def test_the_last_partial_window_has_its_own_denominator(monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[tuple[float, float]] = []
    original = epochs.apply_update

    def before_update(model: PreTrainedModel, *arguments: Any) -> Any:
        rows = epochs.batch_indices(len(EXAMPLES), 5, len(expected), 3)
        plain = copy.deepcopy(model)
        plain.zero_grad()
        loss = -torch.cat([plain_log_probs(plain, EXAMPLES[row]) for row in rows]).mean()
        loss.backward()
        norm = torch.stack([weight.grad.norm() for weight in plain.parameters()]).norm()
        expected.append((loss.item(), norm.item()))
        return original(model, *arguments)

    monkeypatch.setattr(epochs, "apply_update", before_update)
    run = MemoryRun()
    config = SFTConfig(epochs=1, batch_size=5, attention="padded", optimizer=OptimizerConfig(learning_rate=1e-2))
    sft.train_sft(tiny_model(TOKENIZER), TOKENIZER, EXAMPLES, config, run, seed=3)
    assert len(expected) == 3
    assert series(run, "train/loss") == pytest.approx([loss for loss, _ in expected], rel=1e-4)
    # Of each batch alone: nothing of an earlier step is left in a gradient.
    assert series(run, "train/grad_norm") == pytest.approx([norm for _, norm in expected], rel=1e-3)


def test_clip_fraction_counts_loss_tokens_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recorded_losses(monkeypatch)
    eager = OptimizerConfig(learning_rate=2e-2)
    run = run_grpo(tiny_model(TOKENIZER), **OFF_POLICY, optimizer=eager, clip_low=0.1, clip_high=0.15)
    assert len(seen) >= 4
    low = high = tokens = 0
    for one in seen:
        ratio, weights = np.exp(one["new"] - one["old"])[one["mask"]], one["weights"][one["mask"]]
        low += int(((ratio < 0.9) & (weights < 0)).sum())
        high += int(((ratio > 1.15) & (weights > 0)).sum())
        tokens += int(one["mask"].sum())
    assert low > 0
    assert high > 0
    assert tokens == 2 * series(run, "train/tokens")[0]
    assert series(run, "train/clip_fraction_low") == [pytest.approx(low / tokens)]
    assert series(run, "train/clip_fraction_high") == [pytest.approx(high / tokens)]


def test_on_policy_old_log_probs_are_the_new_ones_detached(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recorded_losses(monkeypatch)
    with monkeypatch.context() as patch:
        clipped = Gradients(patch, policy_gradient)
        run = run_grpo(tiny_model(TOKENIZER), loss_type="grpo_clip")
    for one in seen:
        assert np.array_equal(one["new"], one["old"])
        assert not one["old_has_graph"]
    assert series(run, "train/ratio_mean") == series(run, "train/ratio_max") == [1.0]
    assert series(run, "train/clip_fraction_low") == series(run, "train/clip_fraction_high") == [0.0]
    with monkeypatch.context() as patch:
        plain = Gradients(patch, policy_gradient)
        run_grpo(tiny_model(TOKENIZER), loss_type="reinforce_with_baseline")
    for one, other in zip(clipped.kept[0], plain.kept[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_tied_head_adds_its_gradient_to_the_embedding_and_counts_once() -> None:
    tied = tiny_model(TOKENIZER)
    untied = tiny_model(TOKENIZER)
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    batch = collate(EXAMPLES, EOS_ID)
    for model in (tied, untied):
        (-response_log_probs(model, batch).log_probs.sum()).backward()
    both = untied.model.embed_tokens.weight.grad + untied.lm_head.weight.grad
    assert untied.model.embed_tokens.weight.grad.norm() > 1
    assert untied.lm_head.weight.grad.norm() > 1
    torch.testing.assert_close(tied.model.embed_tokens.weight.grad, both, rtol=1e-4, atol=1e-4)
    held = [weight for group in make_optimizer(tied, OptimizerConfig()).param_groups for weight in group["params"]]
    assert len(held) == len({id(weight) for weight in held}) == len(list(tied.parameters()))


def test_dropout_is_off_in_every_loop() -> None:
    noisy, clean = tiny_model(TOKENIZER), tiny_model(TOKENIZER)
    for layer in noisy.model.layers:
        layer.self_attn.attention_dropout = 0.5
    ours, theirs = (run_grpo(model, **OFF_POLICY, kl_coefficient=0.1) for model in (noisy, clean))
    for name in ("train/loss", "train/grad_norm", "train/kl_reference", "train/sampler_gap"):
        assert series(ours, name) == series(theirs, name)
    assert max(series(ours, "train/sampler_gap_max")) < 1e-4


def test_master_weights_and_moments_are_float32_under_bfloat16_compute() -> None:
    model = tiny_model(TOKENIZER)
    before = [weight.clone() for weight in model.parameters()]
    optimizers: list[torch.optim.Optimizer] = []
    config = SFTConfig(epochs=1, batch_size=12, optimizer=OptimizerConfig(learning_rate=1e-6))
    with pytest.MonkeyPatch.context() as patch:
        original = epochs.make_optimizer
        patch.setattr(epochs, "make_optimizer", lambda *a: optimizers.append(original(*a)) or optimizers[-1])
        sft.train_sft(model, TOKENIZER, EXAMPLES, config, MemoryRun(), 3, compute_dtype="bfloat16")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    moments = [value for state in optimizers[0].state.values() for key, value in state.items() if key.startswith("exp")]
    assert {value.dtype for value in moments} == {torch.float32}
    # A step of 1e-6 moves nearly every weight with a gradient; bfloat16 weights would absorb almost all of them.
    moved, absorbed, taught = 0, 0, 0
    for now, then in zip(model.parameters(), before, strict=True):
        active = (then.abs() > 1e-3) & (now != then)
        moved += int(active.sum())
        absorbed += int((now.bfloat16() == then.bfloat16())[active].sum())
        taught += int((then.abs() > 1e-3).sum())
    assert moved > taught / 2
    assert absorbed > 0.9 * moved
    with pytest.raises(ValueError, match="is not float32"):
        make_optimizer(tiny_model(TOKENIZER).to(torch.bfloat16), OptimizerConfig())


def test_seeds_are_of_run_step_problem_and_sample() -> None:
    def seeds(*, run: int, step: int, order: Sequence[int] = range(5)) -> dict[tuple[str, int], int]:
        requests = build_requests([PROBLEMS[index] for index in order], TOKENIZER, 3, run, "rollout", step)
        return {(one.problem_id, one.sample_index): one.seed for one in requests}

    here = seeds(run=1, step=1)
    assert seeds(run=1, step=1, order=[4, 2, 0, 1, 3]) == here
    others = [*here.values(), *seeds(run=2, step=1).values(), *seeds(run=1, step=2).values()]
    assert len(set(others)) == 45
    # The completion follows its seed, whatever else is in the batch.
    sampler = make_sampler(tiny_model(TOKENIZER), TOKENIZER, SAMPLING)
    whole = sampler.sample(build_requests(PROBLEMS, TOKENIZER, 3, 1, "rollout", 1), SAMPLING)
    alone = sampler.sample(build_requests(PROBLEMS[2:3], TOKENIZER, 3, 1, "rollout", 1), SAMPLING)
    assert [item.response_ids for item in alone] == [item.response_ids for item in whole[6:9]]
