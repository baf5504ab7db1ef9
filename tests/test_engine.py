"""The engine of the training loops: what it makes of its settings, and what it says of bad input."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_dpo import CONFIG as DPO
from test_policy_gradient import CONFIG as GRPO
from test_policy_gradient import OFF_POLICY
from test_sft import CONFIG as SFT
from tiny_loops import EXAMPLES, PAIRS, PROBLEMS, SAMPLING, TOKENIZER, likes_low_letters
from tiny_models import byte_tokenizer, tiny_model
from transformers import PreTrainedModel

from alignment_core import engine as engine_room
from alignment_core import logprobs, policy_gradient
from alignment_core.attention import KERNELS
from alignment_core.batching import TokenSequence
from alignment_core.dpo import train_dpo
from alignment_core.engine import Engine
from alignment_core.hardware import devices, memory_advice
from alignment_core.optimization import BROKEN_BATCH, StepGuard, apply_update, make_optimizer
from alignment_core.policy_gradient import train_grpo
from alignment_core.runs import MemoryRun, RunContext
from alignment_core.sampling import PromptRequest, make_sampler
from alignment_core.sft import train_sft
from alignment_core.stage_run import StageRun
from alignment_core.training_config import EngineConfig, GRPOConfig

SEQUENCES = [TokenSequence([1, 2, 3], [4, 5]), TokenSequence([6], [7, 8, 9])]


def run_sft(model: PreTrainedModel, run: RunContext) -> None:
    train_sft(model, TOKENIZER, EXAMPLES, SFT, run, seed=3)


def run_grpo(model: PreTrainedModel, run: MemoryRun, config: GRPOConfig = GRPO) -> None:
    train_grpo(model, TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, run, seed=3)


def run_dpo(model: PreTrainedModel, run: MemoryRun) -> None:
    train_dpo(model, TOKENIZER, PAIRS, DPO.model_copy(update={"attention": "auto"}), run, seed=3)


@pytest.mark.parametrize("train", [run_sft, run_grpo, run_dpo])
def test_the_log_names_the_kernel_at_the_start_of_a_stage(train):
    run = MemoryRun()
    train(tiny_model(TOKENIZER), run)
    assert run.lines[0] == f"attention: {KERNELS['sdpa']}"


def test_doctor_names_the_kernel_that_trains():
    named = dict(devices())
    assert any("packed rows" in text for name, text in named.items() if name.startswith("attention"))


def count_head_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    passes: list[int] = []
    walk = logprobs._Chunks.__iter__
    monkeypatch.setattr(logprobs._Chunks, "__iter__", lambda chunks: passes.append(1) or walk(chunks))
    return passes


@pytest.mark.parametrize("loss_type", ["no_baseline", "reinforce_with_baseline", "grpo_clip", "grpo_no_clip"])
def test_on_policy_every_token_meets_the_head_once(loss_type: str, monkeypatch: pytest.MonkeyPatch):
    """No pass for old log-probs, none to recompute logits: rows with and without weight are one micro-batch each."""
    passes, run = count_head_passes(monkeypatch), MemoryRun()
    run_grpo(tiny_model(TOKENIZER), run, GRPO.model_copy(update={"loss_type": loss_type}))
    assert len(run.points) == 2
    assert 2 <= len(passes) <= 2 * 2


def test_fine_tuning_meets_the_head_once_per_micro_batch(monkeypatch: pytest.MonkeyPatch):
    passes = count_head_passes(monkeypatch)
    run = MemoryRun()
    run_sft(tiny_model(TOKENIZER), run)
    assert len(passes) == len(run.points)


def test_off_policy_old_log_probs_are_scored_once_and_logits_recomputed(monkeypatch: pytest.MonkeyPatch):
    passes = count_head_passes(monkeypatch)
    config = OFF_POLICY.model_copy(update={"n_grpo_steps": 1, "micro_batch_tokens": 100_000})
    run_grpo(tiny_model(TOKENIZER), MemoryRun(), config)
    # One pass for old log-probs; each of 4 updates one forward pass, one backward, and one for rows without weight.
    assert 1 + 4 * 2 <= len(passes) <= 1 + 4 * 3


@pytest.mark.parametrize("changes", [{"recompute_activations": True}, {"attention": "padded"}])
@pytest.mark.parametrize("train", ["sft", "grpo"])
def test_settings_of_the_engine_change_no_result(changes: dict[str, object], train: str):
    def points(settings: dict[str, object]) -> list[dict[str, float]]:
        model, run = tiny_model(TOKENIZER), MemoryRun()
        if train == "sft":
            train_sft(model, TOKENIZER, EXAMPLES, SFT.model_copy(update=settings), run, seed=3)
        else:
            run_grpo(model, run, GRPO.model_copy(update=settings))
        return [metrics for _, metrics in run.points]

    for plain, other in zip(points({}), points(changes), strict=True):
        for name in ("train/loss", "train/grad_norm"):
            assert other[name] == pytest.approx(plain[name], rel=2e-4, abs=1e-6)


def test_compiling_is_asked_of_each_layer(monkeypatch: pytest.MonkeyPatch):
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: asked.append(options))
    monkeypatch.setattr(engine_room.AttentionInterface, "register", lambda name, function: None)
    Engine(tiny_model(TOKENIZER), TOKENIZER, EngineConfig(compile=True))
    assert asked == [{"dynamic": True}] * 2
    Engine(tiny_model(TOKENIZER), TOKENIZER, EngineConfig())
    assert len(asked) == 2


@pytest.mark.slow
def test_compiled_layers_agree_for_batches_of_any_length():
    plain, compiled = tiny_model(TOKENIZER), tiny_model(TOKENIZER)
    engines = Engine(plain, TOKENIZER, EngineConfig()), Engine(compiled, TOKENIZER, EngineConfig(compile=True))
    for items in (SEQUENCES, SEQUENCES[1:], EXAMPLES[:5]):
        for engine in engines:
            for _, batch in engine.micro_batches(items):
                engine.backward(engine.scores(batch).log_probs.sum())
        for ours, theirs in zip(plain.parameters(), compiled.parameters(), strict=True):
            assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)


# Bad input.


def test_a_tokenizer_with_more_ids_than_the_model_has_embeddings_is_refused():
    with pytest.raises(ValueError, match=r"tokenizer has 257 ids and the model embeddings for 200"):
        Engine(tiny_model(TOKENIZER, vocab_size=200), TOKENIZER, EngineConfig())


def test_a_token_without_an_embedding_is_refused():
    engine = Engine(tiny_model(TOKENIZER), TOKENIZER, EngineConfig())
    with pytest.raises(ValueError, match=r"holds token 257, and the model has embeddings for 257 ids"):
        next(engine.micro_batches([TokenSequence([1, 257], [2])]))


def test_a_sequence_beyond_the_models_positions_is_refused():
    engine = Engine(tiny_model(TOKENIZER), TOKENIZER, EngineConfig())
    with pytest.raises(ValueError, match=r"129 tokens exceeds the model's 128 positions: lower max_length"):
        next(engine.micro_batches([TokenSequence([1] * 100, [2] * 29)]))
    next(engine.micro_batches([TokenSequence([1] * 100, [2] * 28)]))


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_sampled():
    sampler = make_sampler(tiny_model(TOKENIZER), TOKENIZER, SAMPLING)
    with pytest.raises(ValueError, match=r"a prompt of 123 tokens and 6 new ones exceed the model's 128 positions"):
        sampler.sample([PromptRequest("p", 0, [1] * 123, 0)], SAMPLING)


def test_a_batch_without_a_response_token_gives_zeros_and_zero_gradients():
    model = tiny_model(TOKENIZER)
    engine = Engine(model, TOKENIZER, EngineConfig())
    ((_, batch),) = engine.micro_batches([TokenSequence([1, 2, 3], []), TokenSequence([4, 5], [])])
    scores = engine.scores(batch, with_entropy=True)
    assert not scores.log_probs.any()
    assert not scores.entropy.any()
    engine.backward(scores.log_probs.sum())
    engine.sum_gradients()
    assert not any(weight.grad.any() for weight in model.parameters())


def test_a_tokenizer_without_padding_and_end_trains_and_samples():
    bare, model = byte_tokenizer(), tiny_model(TOKENIZER)
    bare.eos_token = bare.pad_token = None
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    run = MemoryRun()
    train_sft(model, bare, EXAMPLES, SFT, run, seed=3)
    assert all(math.isfinite(metrics["train/loss"]) for _, metrics in run.points)
    requests = [PromptRequest("p", index, [1] * (index + 1), index) for index in range(3)]
    done = make_sampler(model, bare, SAMPLING).sample(requests, SAMPLING)
    assert [(item.finish_reason, len(item.response_ids)) for item in done] == [("length", 6)] * 3


class Breaks(MemoryRun):
    """Saves a checkpoint after the first step, and has something go wrong then."""

    def __init__(self, folder: Path, broken: Callable[[], object]) -> None:
        super().__init__(folder, checkpoint_seconds=0)
        self.broken = broken

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        super().save_checkpoint(step, write)
        self.saved = {path.name: path.read_bytes() for path in self.latest_checkpoint().iterdir()}
        self.broken()


def assert_batch_is_kept(run: Breaks, size: int, folder: Path) -> None:
    """The optimizer batch of step 2 is in the record, and the checkpoint of step 1 as it was."""
    ((name, step, rows),) = [entry for entry in run.rows if entry[0] == BROKEN_BATCH]
    assert (name, step, len(rows)) == ("broken_batch", 2, size)
    assert all(set(row) == {"prompt_ids", "response_ids"} and row["response_ids"] for row in rows)
    assert run.latest_checkpoint() == folder / "step-00000001"
    assert {path.name: path.read_bytes() for path in run.latest_checkpoint().iterdir()} == run.saved


LOOPS = pytest.mark.parametrize(("train", "size"), [(run_sft, 5), (run_dpo, 10), (run_grpo, 16)])


@LOOPS
def test_a_loss_that_is_not_finite_stops_the_run_keeps_its_batch_and_the_checkpoint(train, size: int, tmp_path: Path):
    def spoil() -> None:
        with torch.no_grad():
            model.model.norm.weight[0] = math.inf

    model = tiny_model(TOKENIZER)
    run = Breaks(tmp_path, spoil)
    match = r"the loss is nan at step 2: its batch is in the run's rows 'broken_batch'; lower"
    # A policy without a finite logit cannot be sampled, so GRPO's sampler keeps the weights of the start.
    if train is run_grpo:
        sampler = make_sampler(tiny_model(TOKENIZER), TOKENIZER, SAMPLING)
        sampler.update_weights = lambda model: None
        with pytest.raises(FloatingPointError, match=match):
            train_grpo(model, TOKENIZER, PROBLEMS, GRPO, SAMPLING, likes_low_letters, run, seed=3, sampler=sampler)
    else:
        with pytest.raises(FloatingPointError, match=match):
            train(model, run)
    assert_batch_is_kept(run, size, tmp_path)


def test_the_batch_of_a_broken_stage_outlasts_the_next_attempt(tmp_path: Path):
    model = tiny_model(TOKENIZER)
    with torch.no_grad():
        model.model.norm.weight[0] = math.inf
    work = tmp_path / "sft-0123"
    run = StageRun(work)
    run.resume()
    kept = tmp_path / "sft-0123.broken_batch.json"
    with pytest.raises(
        FloatingPointError, match=f"the loss is nan at step 1: its batch is in {re.escape(str(kept))}; lower"
    ):
        run_sft(model, run)
    run.close()
    StageRun(work).resume()
    batch = json.loads(kept.read_text())
    assert (batch["step"], len(batch["rows"])) == (1, 5)
    assert all(row["response_ids"] for row in batch["rows"])


@LOOPS
def test_a_gradient_that_is_not_finite_stops_the_run_keeps_its_batch_and_the_checkpoint(
    train, size: int, tmp_path: Path
):
    """The forward pass stays sound; from step 2 on one weight's gradient overflows on its way back."""

    def overflow() -> None:
        weight = model.model.layers[0].mlp.up_proj.weight
        weight.register_hook(lambda gradient: torch.where(gradient != 0, torch.inf, 0))
        before.update({name: value.clone() for name, value in model.named_parameters()})

    model, before = tiny_model(TOKENIZER), dict[str, torch.Tensor]()
    run = Breaks(tmp_path, overflow)
    with pytest.raises(FloatingPointError, match=r"the gradient norm is inf at step 2: its batch is in the run's"):
        train(model, run)
    assert [step for step, _ in run.points] == [1]
    assert_batch_is_kept(run, size, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def too_much(*_: object, **__: object) -> None:
    """An allocation no machine has room for, by the real allocator."""
    torch.empty(1 << 56)


def no_room_on_the_device(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def no_room_for_numpy(*_: object, **__: object) -> None:
    np.empty(1 << 56)


NO_ROOM = pytest.mark.parametrize("fail", [too_much, no_room_on_the_device, no_room_for_numpy])


@NO_ROOM
@pytest.mark.parametrize("train", [run_sft, run_dpo, run_grpo])
def test_a_loop_out_of_memory_says_what_to_lower(train, fail, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_room, "response_log_probs", fail)
    with pytest.raises(MemoryError, match=r"^out of memory: lower micro_batch_tokens 16384, or set recompute_activat"):
        train(tiny_model(TOKENIZER), MemoryRun())


@NO_ROOM
def test_every_part_of_a_step_out_of_memory_says_what_to_lower(fail, monkeypatch: pytest.MonkeyPatch):
    engine = Engine(tiny_model(TOKENIZER), TOKENIZER, EngineConfig(micro_batch_tokens=77))
    ((_, batch),) = engine.micro_batches(SEQUENCES)
    loss = engine.scores(batch).log_probs.sum()
    loss.register_hook(fail)
    with pytest.raises(MemoryError, match=r"lower micro_batch_tokens 77, or set recompute_activations \(.+\)$"):
        engine.backward(loss)
    monkeypatch.setattr(engine_room, "collate", fail)
    with pytest.raises(MemoryError, match="lower micro_batch_tokens 77"):
        next(engine.micro_batches(SEQUENCES))
    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    optimizer, guard = make_optimizer(engine.model, SFT.optimizer), StepGuard(MemoryRun(), 1, SEQUENCES)
    with pytest.raises(MemoryError, match=r"16 bytes per parameter.*take a smaller model"):
        apply_update(engine.model, optimizer, SFT.optimizer, 0, 1, guard)


@NO_ROOM
def test_a_second_model_out_of_memory_says_which_setting_holds_it(fail, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(policy_gradient, "frozen_copy", fail)
    with pytest.raises(MemoryError, match=r"grpo\.kl_coefficient above 0 holds a second model: set it to 0"):
        run_grpo(tiny_model(TOKENIZER), MemoryRun(), GRPO.model_copy(update={"kl_coefficient": 0.1}))


@NO_ROOM
@pytest.mark.parametrize("decoding", ["plain", "static"])
def test_sampling_out_of_memory_says_what_to_lower(decoding: str, fail, monkeypatch: pytest.MonkeyPatch):
    config = SAMPLING.model_copy(update={"decoding": decoding})
    model = tiny_model(TOKENIZER)
    sampler = make_sampler(model, TOKENIZER, config)
    # Where the cache of a batch is made.
    monkeypatch.setattr(model.model.layers[1].self_attn.k_proj, "forward", fail)
    with pytest.raises(MemoryError, match=r"lower sampling.batch_size 16 or sampling.max_tokens"):
        sampler.sample([PromptRequest("p", 0, [1], 0)], config)
    assert not model.training


def test_advice_is_given_once_and_nearest_to_the_cause():
    with pytest.raises(MemoryError) as caught, memory_advice("buy more"), memory_advice("lower it"):
        raise MemoryError
    assert str(caught.value) == "out of memory: lower it (no details)"


def test_other_errors_keep_their_type_and_text():
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"), memory_advice("lower something"):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(MemoryError, match="lower it"), memory_advice("lower it"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
