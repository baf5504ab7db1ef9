"""Tiny training runs, written-out log-probs, and ears at a loop's seams."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import EOS, ScriptedModel, byte_tokenizer, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from alignment_core import dpo, epochs, policy_gradient, sft
from alignment_core.batching import TokenSequence
from alignment_core.config import SamplingConfig
from alignment_core.records import Completion, GradedResponse, Problem
from alignment_core.runs import MemoryRun
from alignment_core.sampling import PromptRequest, encode_trace, make_sampler
from alignment_core.training_config import DPOConfig, GRPOConfig, OptimizerConfig, SFTConfig

TOKENIZER = byte_tokenizer()
EOS_ID = TOKENIZER.convert_tokens_to_ids(EOS)
PROBLEMS = [Problem(id=f"p{i}", question="", prompt="q" * (i + 1), ground_truth="a") for i in range(5)]
SAMPLING = SamplingConfig(max_tokens=6, batch_size=16)
GRPO: dict[str, Any] = {
    "n_grpo_steps": 1,
    "rollout_batch_size": 16,
    "train_batch_size": 16,
    "group_size": 4,
    "min_tokens": 0,
    "optimizer": OptimizerConfig(learning_rate=5e-3),
}
OFF_POLICY = {"loss_type": "grpo_clip", "epochs_per_rollout_batch": 2, "train_batch_size": 8}
EXAMPLES = [encode_trace(TOKENIZER, f"{a}+{b}=", f" {'so ' * a}{a + b}</answer>") for a in range(4) for b in range(3)]


def likes_low_letters(responses: Sequence[str], truths: Sequence[str]) -> list[GradedResponse]:
    """Reward 1 for a first character before `a`; the truth only has to be there."""
    assert len(responses) == len(truths)
    good = [float(response[:1] < "a") for response in responses]
    return [GradedResponse(format_reward=1.0, answer_reward=value, reward=value) for value in good]


def run_grpo(model: PreTrainedModel, sampling: SamplingConfig = SAMPLING, **changes: Any) -> MemoryRun:
    run = MemoryRun()
    config = GRPOConfig(**{**GRPO, **changes})
    policy_gradient.train_grpo(model, TOKENIZER, PROBLEMS, config, sampling, likes_low_letters, run, seed=3)
    return run


def series(run: MemoryRun, name: str) -> list[float]:
    return [metrics[name] for _, metrics in run.points if name in metrics]


class Interrupted(Exception):
    """The machine is taken away."""


class FragileRun(MemoryRun):
    """Checkpoints after every step; dies where it would record step `dies_at`."""

    def __init__(self, folder: Path | None = None, dies_at: int = -1) -> None:
        super().__init__(folder, checkpoint_seconds=0)
        self.dies_at = dies_at

    def emit(self, step: int, metrics: Mapping[str, float], total: int | None = None) -> None:
        if step == self.dies_at:
            raise Interrupted
        super().emit(step, metrics, total)


class MovedPolicy(MemoryRun):
    """Moves the weights off the start policy where a resume would, so that a reference differs from the policy."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def latest_checkpoint(self) -> None:
        with torch.no_grad():
            for weight, other in zip(self.model.parameters(), tiny_model(TOKENIZER, 1).parameters(), strict=True):
                weight.copy_(other)


def plain_log_probs(model: PreTrainedModel, sequence: TokenSequence, temperature: float = 1.0) -> Tensor:
    """Response log-probs from the full logits of one sequence, written out."""
    ids = sequence.prompt_ids + sequence.response_ids
    scores = (model(torch.tensor([ids])).logits[0].float() / temperature).log_softmax(-1)
    return torch.stack([scores[t - 1, ids[t]] for t in range(len(sequence.prompt_ids), len(ids))])


def scripted(script: list[int], max_tokens: int = 12, pieces: tuple[str, ...] = ()) -> Completion:
    """What the sampler makes of a model that says `script`."""
    tokenizer = byte_tokenizer(*pieces)
    prompt = tokenizer.encode("ask <think>")
    model = ScriptedModel(tokenizer, len(prompt), script, tail=tokenizer.encode("~")[0])
    config = SamplingConfig(max_tokens=max_tokens, temperature=1.0)
    return make_sampler(model, tokenizer, config).sample([PromptRequest("p", 0, prompt, 1)], config)[0]


class Gradients:
    """Keeps the accumulated gradient of every update of a loop."""

    def __init__(self, patch: pytest.MonkeyPatch, loop: ModuleType) -> None:
        self.kept: list[list[Tensor]] = []
        original = loop.apply_update

        def keeping(model: PreTrainedModel, *arguments: Any) -> Any:
            self.kept.append([weight.grad.clone() for weight in model.parameters()])
            return original(model, *arguments)

        patch.setattr(loop, "apply_update", keeping)


def split_into(size: int) -> Callable[..., list[list[int]]]:
    """A planner that cuts a batch into runs of `size` examples, the last one partial."""

    def plan(rows: Sequence[TokenSequence], budget: int, packed: bool, together: int = 1) -> list[list[int]]:
        step = size * together
        return [list(range(at, min(at + step, len(rows)))) for at in range(0, len(rows), step)]

    return plan


def recorded_losses(patch: pytest.MonkeyPatch) -> list[dict[str, np.ndarray]]:
    """Arguments of every policy-gradient loss a run computes from now on."""
    seen: list[dict[str, np.ndarray]] = []
    original = policy_gradient.policy_gradient_loss

    def keeping(loss_type: str, new: Tensor, weights: Tensor, old: Tensor, clip: object, mask: Tensor) -> Any:
        values = {"new": new, "weights": weights.expand_as(new), "old": old, "mask": mask}
        seen.append({name: value.detach().numpy() for name, value in values.items()})
        seen[-1]["old_has_graph"] = np.array(old.requires_grad)
        return original(loss_type, new, weights, old, clip, mask)

    patch.setattr(policy_gradient, "policy_gradient_loss", keeping)
    return seen


PAIRS = [
    dpo.TokenPair(one, TokenSequence(one.prompt_ids, TOKENIZER.encode("no" * (1 + n))))
    for n, one in enumerate(EXAMPLES)
]


def loop_and_run(loop: str, attention: str, normalization: str) -> tuple[ModuleType, Callable[[], MemoryRun]]:
    """The module in which a loop takes its updates, and a call that runs it."""
    rate = OptimizerConfig(learning_rate=1e-3)
    run = MemoryRun()

    def sft_run() -> MemoryRun:
        # 12 examples in batches of 5: the last window of the epoch has 2, and its own denominator.
        config = SFTConfig(epochs=1, batch_size=5, attention=attention, optimizer=rate)
        sft.train_sft(tiny_model(TOKENIZER), TOKENIZER, EXAMPLES, config, run, seed=3)
        return run

    def dpo_run() -> MemoryRun:
        config = DPOConfig(batch_size=5, beta=0.5, attention=attention, optimizer=rate)
        dpo.train_dpo(tiny_model(TOKENIZER), TOKENIZER, PAIRS, config, run, seed=3)
        return run

    def grpo_run() -> MemoryRun:
        clip = {**OFF_POLICY, "kl_coefficient": 0.2} if loop == "grpo off-policy" else {}
        constant = {"normalize_constant": 3.0} if normalization == "masked_normalize" else {}
        changes = {**clip, **constant, "attention": attention, "length_normalization": normalization, "optimizer": rate}
        return run_grpo(tiny_model(TOKENIZER), **changes)

    return {"sft": (epochs, sft_run), "dpo": (epochs, dpo_run)}.get(loop, (policy_gradient, grpo_run))


INVARIANCE = [
    ("sft", "token_mean"),
    ("dpo", "sum"),
    *(("grpo", mode) for mode in ("masked_mean", "masked_normalize", "token_mean", "constant")),
    ("grpo off-policy", "token_mean"),
]
"""Loops and length normalizations whose gradient must not feel how a batch is cut."""
