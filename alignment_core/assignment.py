"""The functions the CS336 alignment assignment names, with its signatures, over the rooms of this package.

A student can call them from the course's adapters line by line. The pipeline itself uses the rooms.
Where a function takes more than the course asks, the extra arguments come last and are optional.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from alignment_core import losses
from alignment_core.advantages import group_advantages, group_statistics
from alignment_core.batching import Batch, PackedDataset, TokenSequence, collate, pack_documents
from alignment_core.config import LossType
from alignment_core.logprobs import entropy_from_logits, response_log_probs
from alignment_core.masking import masked_mean, masked_normalize
from alignment_core.records import Record, read_jsonl
from alignment_core.seeding import derive_seed

__all__ = [
    "compute_entropy",
    "compute_group_normalized_rewards",
    "compute_grpo_clip_loss",
    "compute_naive_policy_gradient_loss",
    "compute_per_instance_dpo_loss",
    "compute_policy_gradient_loss",
    "get_packed_sft_dataset",
    "get_response_log_probs",
    "grpo_microbatch_train_step",
    "iterate_batches",
    "log_generations",
    "masked_mean",
    "masked_normalize",
    "sft_microbatch_train_step",
    "tokenize_prompt_and_output",
]

RewardFn = Callable[[str, str], Mapping[str, float]]
"""(response, ground truth) -> `reward`, `format_reward`, `answer_reward`."""

INSTRUCTION_TEMPLATE = "Carry out the following request.\n\n## Request\n{instruction}\n\n## Reply\n{response}"
"""Default document of instruction tuning and DPO; the published one can be given instead."""


def tokenize_prompt_and_output(
    prompt_strs: Sequence[str], output_strs: Sequence[str], tokenizer: Any
) -> dict[str, Tensor]:
    """`input_ids`, `labels` and `response_mask`, (B, L-1) each, of B prompt/output pairs; L is the longest pair.

    Prompt and output are tokenized apart, without special tokens, and concatenated; the mask is true on the labels
    that are output tokens. Raises ValueError if the lists differ in length.
    """
    if len(prompt_strs) != len(output_strs):
        raise ValueError(f"{len(prompt_strs)} prompts but {len(output_strs)} outputs: give one output for each prompt")
    sequences = [
        TokenSequence(_encode(tokenizer, prompt), _encode(tokenizer, output))
        for prompt, output in zip(prompt_strs, output_strs, strict=True)
    ]
    batch = collate(sequences, _padding_id(tokenizer))
    return {"input_ids": batch.input_ids, "labels": batch.labels, "response_mask": batch.response_mask}


def compute_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of the next-token distributions: logits (B, T, V) give (B, T)."""
    return entropy_from_logits(logits)


def get_response_log_probs(
    model: nn.Module, input_ids: Tensor, labels: Tensor, return_token_entropy: bool = False
) -> dict[str, Tensor]:
    """`log_probs` (B, T) of every label, padding and prompt included, and `token_entropy` (B, T) if asked."""
    everywhere = torch.ones_like(labels, dtype=torch.bool)
    scores = response_log_probs(model, Batch(input_ids, labels, everywhere), with_entropy=return_token_entropy)
    result = {"log_probs": scores.log_probs}
    if scores.entropy is not None:
        result["token_entropy"] = scores.entropy
    return result


def sft_microbatch_train_step(
    policy_log_probs: Tensor,
    response_mask: Tensor,
    gradient_accumulation_steps: int,
    normalize_constant: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Backward of mean_b [sum_t mask (-log p) / constant] / accumulation steps; that loss, and metadata."""
    per_token = losses.negative_log_likelihood(policy_log_probs)
    denominator = len(policy_log_probs) * gradient_accumulation_steps
    loss = losses.aggregate(per_token, response_mask, "masked_normalize", denominator, normalize_constant)
    loss.backward()
    metadata = {
        "token_nll": masked_mean(per_token.detach(), response_mask),
        "response_tokens": response_mask.sum(),
    }
    return loss.detach(), metadata


def log_generations(
    prompts: Sequence[str],
    responses: Sequence[str],
    ground_truths: Sequence[str],
    rewards: Sequence[Mapping[str, float]],
    token_entropies: Sequence[Sequence[float]],
) -> tuple[list[dict[str, object]], dict[str, float]]:
    """One row per generation, and a summary, to be logged while training.

    `rewards[i]` holds `reward`, `format_reward`, `answer_reward`; `token_entropies[i]` has one entropy (nats) per
    response token, so its length is the response's. The summary holds mean lengths of all, correct and incorrect
    responses and the mean entropy per token; a mean over nothing is left out.
    Raises ValueError if the sequences differ in length.
    """
    rows: list[dict[str, object]] = []
    for prompt, response, truth, reward, entropies in zip(
        prompts, responses, ground_truths, rewards, token_entropies, strict=True
    ):
        row: dict[str, object] = {"prompt": prompt, "response": response, "ground_truth": truth, **reward}
        row["mean_token_entropy"] = _mean(entropies)
        row["response_length"] = len(entropies)
        rows.append(row)
    measured = [
        (len(entropies), reward["answer_reward"] == 1)
        for entropies, reward in zip(token_entropies, rewards, strict=True)
    ]
    means = {
        "mean_response_length": _mean([length for length, _ in measured]),
        "mean_response_length_correct": _mean([length for length, correct in measured if correct]),
        "mean_response_length_incorrect": _mean([length for length, correct in measured if not correct]),
        "mean_token_entropy": _mean([entropy for entropies in token_entropies for entropy in entropies]),
    }
    return rows, {name: value for name, value in means.items() if value is not None}


def compute_group_normalized_rewards(
    reward_fn: RewardFn,
    rollout_responses: Sequence[str],
    repeated_ground_truths: Sequence[str],
    group_size: int,
    advantage_eps: float,
    normalize_by_std: bool,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Advantages (B,), raw rewards (B,) and metadata of B = P * G responses, groups of `group_size` in a row.

    Raises ValueError if B is not a multiple of the group size, or the ground truths are not B.
    """
    if group_size <= 0 or len(rollout_responses) % group_size:
        raise ValueError(f"{len(rollout_responses)} responses do not split into groups of {group_size}")
    graded = [
        reward_fn(response, truth) for response, truth in zip(rollout_responses, repeated_ground_truths, strict=True)
    ]
    raw_rewards = torch.tensor([grade["reward"] for grade in graded], dtype=torch.float32)
    groups = raw_rewards.view(-1, group_size)
    statistics = group_statistics(groups)
    metadata = {f"reward_{name}": value for name, value in vars(statistics).items()}
    for part in ("format_reward", "answer_reward"):
        if all(part in grade for grade in graded):
            metadata[f"{part}_mean"] = sum(grade[part] for grade in graded) / len(graded)
    return group_advantages(groups, advantage_eps, normalize_by_std).flatten(), raw_rewards, metadata


def compute_naive_policy_gradient_loss(raw_rewards_or_advantages: Tensor, policy_log_probs: Tensor) -> Tensor:
    """-A log p per token: (B, 1) and (B, T) give (B, T)."""
    return losses.reinforce_loss(raw_rewards_or_advantages, policy_log_probs)


def compute_grpo_clip_loss(
    advantages: Tensor, policy_log_probs: Tensor, old_log_probs: Tensor, cliprange: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(r A, clip(r, 1-c, 1+c) A) per token (B, T), and per-token metadata: ratio, approx_kl, clip flags."""
    result = losses.grpo_clip_loss(advantages, policy_log_probs, old_log_probs, cliprange)
    return result.loss, result.statistics


def compute_policy_gradient_loss(
    policy_log_probs: Tensor,
    loss_type: LossType,
    raw_rewards: Tensor | None = None,
    advantages: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    cliprange: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The per-token loss (B, T) that `loss_type` names, and per-token metadata.

    `no_baseline` weighs by `raw_rewards` (B, 1), the others by `advantages` (B, 1); `grpo_clip` and `grpo_no_clip`
    need `old_log_probs` (B, T), `grpo_clip` also `cliprange`. Raises ValueError for what is missing.
    """
    name, weights = ("raw_rewards", raw_rewards) if loss_type == "no_baseline" else ("advantages", advantages)
    if weights is None:
        raise ValueError(f"loss_type {loss_type!r} needs {name}, of shape (B, 1)")
    result = losses.policy_gradient_loss(loss_type, policy_log_probs, weights, old_log_probs, cliprange)
    return result.loss, result.statistics


def grpo_microbatch_train_step(
    policy_log_probs: Tensor,
    response_mask: Tensor,
    gradient_accumulation_steps: int,
    loss_type: LossType,
    raw_rewards: Tensor | None = None,
    advantages: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    cliprange: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Backward of mean_b [masked mean_t loss] / accumulation steps; that loss, and metadata averaged over tokens."""
    per_token, statistics = compute_policy_gradient_loss(
        policy_log_probs, loss_type, raw_rewards, advantages, old_log_probs, cliprange
    )
    denominator = len(policy_log_probs) * gradient_accumulation_steps
    loss = losses.aggregate(per_token, response_mask, "masked_mean", denominator)
    loss.backward()
    metadata = {name: masked_mean(values, response_mask) for name, values in statistics.items()}
    return loss.detach(), metadata


class InstructionExample(Record):
    """One line of an instruction-tuning file; further fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt: str
    response: str


def get_packed_sft_dataset(
    tokenizer: Any,
    dataset_path: str | os.PathLike[str],
    seq_length: int,
    shuffle: bool,
    template: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> PackedDataset:
    """JSONL of {prompt, response} as packed rows of `seq_length` tokens.

    Each example is rendered with `template` (text or file with `{instruction}` and `{response}`) and tokenized with
    the tokenizer's own special tokens; documents are joined by the end-of-text token. `shuffle` reorders the
    documents, by `seed`, before they are packed. Raises ValueError for a bad line or too little text.
    """
    examples = read_jsonl(Path(dataset_path), InstructionExample)
    if shuffle:
        order = torch.randperm(len(examples), generator=_generator(seed, "documents")).tolist()
        examples = [examples[index] for index in order]
    layout = _read_instruction_template(template)
    texts = ["".join(_render_instruction(layout, one.prompt, one.response)) for one in examples]
    documents = [_encode(tokenizer, text, special_tokens=True) for text in texts]
    return pack_documents(documents, _end_of_text_id(tokenizer), seq_length)


def iterate_batches(dataset: Dataset[Any], batch_size: int, shuffle: bool, seed: int = 0) -> DataLoader[Any]:
    """One epoch of batches, the last one possibly smaller; `shuffle` orders the examples by `seed`."""
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, generator=_generator(seed, "batches"))


def compute_per_instance_dpo_loss(
    lm: nn.Module,
    lm_ref: nn.Module,
    tokenizer: Any,
    beta: float,
    prompt: str,
    response_chosen: str,
    response_rejected: str,
    template: str | os.PathLike[str] | None = None,
) -> Tensor:
    """-log sigmoid(beta (delta_chosen - delta_rejected)), delta = log p - log p_ref of response and EOS; a scalar.

    Prompt and response are set in `template` (text or file with `{instruction}` and `{response}`). The prompt's own
    log-probability is the same in both pairs and cancels. `lm` and `lm_ref` may sit on different devices; the result
    lies on `lm`'s, and only `lm` gets a gradient.
    """
    layout = _read_instruction_template(template)
    sequences = []
    for response in (response_chosen, response_rejected):
        before, after = _render_instruction(layout, prompt, response)
        response_ids = [*_encode(tokenizer, after), _end_of_text_id(tokenizer)]
        sequences.append(TokenSequence(_encode(tokenizer, before, special_tokens=True), response_ids))
    batch = collate(sequences, _padding_id(tokenizer))
    policy = _sequence_log_probs(lm, batch)
    with torch.no_grad():
        reference = _sequence_log_probs(lm_ref, batch).to(policy.device)
    return losses.dpo_loss(policy[:1], policy[1:], reference[:1], reference[1:], beta).loss.squeeze(0)


def _sequence_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """(B,) sums of response log-probs, computed where the model is."""
    device = next(model.parameters()).device
    return response_log_probs(model, batch.to(device)).log_probs.sum(-1)


def _read_instruction_template(template: str | os.PathLike[str] | None) -> str:
    """Template text from a text, a file (without its final newline) or the default; checked for its two fields."""
    if template is None:
        return INSTRUCTION_TEMPLATE
    is_text = isinstance(template, str) and "{response}" in template
    text = str(template) if is_text else Path(template).read_text(encoding="utf-8").rstrip("\n")
    if text.count("{instruction}") != 1 or text.count("{response}") != 1:
        raise ValueError("an instruction template holds {instruction} and {response} once each")
    return text


def _render_instruction(template: str, instruction: str, response: str) -> tuple[str, str]:
    """The text up to the response, and the response with what follows it."""
    before, after = template.split("{response}")
    return before.replace("{instruction}", instruction), response + after.replace("{instruction}", instruction)


def _encode(tokenizer: Any, text: str, special_tokens: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special_tokens)["input_ids"])


def _padding_id(tokenizer: Any) -> int:
    """Padding id, or the end-of-text id in its place: masks come from lengths, so that any id will do."""
    return _end_of_text_id(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def _end_of_text_id(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token: set tokenizer.eos_token")
    return int(tokenizer.eos_token_id)


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, purpose))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
