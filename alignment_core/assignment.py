"""The functions the CS336 alignment assignment names, with its signatures, over the rooms of this package.

A student can call them from the course's adapters line by line. The pipeline itself uses the rooms.
Where a function takes more than the course asks, the extra arguments come last and are optional.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignment_core import losses
from alignment_core.advantages import group_advantages, group_statistics
from alignment_core.batching import Batch, TokenSequence, collate
from alignment_core.instruction_tuning import (
    compute_per_instance_dpo_loss,
    encode_text,
    get_packed_sft_dataset,
    iterate_batches,
    padding_id,
)
from alignment_core.logprobs import entropy_from_logits, response_log_probs
from alignment_core.losses import ClipRange
from alignment_core.masking import masked_mean, masked_normalize
from alignment_core.rewards import parse_gsm8k_response, parse_mmlu_response
from alignment_core.training_config import LossType

__all__ = [
    "compute_entropy",
    "compute_group_normalized_rewards",
    "compute_grpo_clip_loss",
    "compute_naive_policy_gradient_loss",
    "compute_per_instance_dpo_loss",
    "compute_policy_gradient_loss",
    "evaluate_vllm",
    "get_packed_sft_dataset",
    "get_response_log_probs",
    "grpo_microbatch_train_step",
    "iterate_batches",
    "log_generations",
    "masked_mean",
    "masked_normalize",
    "parse_gsm8k_response",
    "parse_mmlu_response",
    "sft_microbatch_train_step",
    "tokenize_prompt_and_output",
]

RewardFn = Callable[[str, str], Mapping[str, float]]
"""(response, ground truth) -> `reward`, `format_reward`, `answer_reward`."""


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
        TokenSequence(encode_text(tokenizer, prompt), encode_text(tokenizer, output))
        for prompt, output in zip(prompt_strs, output_strs, strict=True)
    ]
    batch = collate(sequences, padding_id(tokenizer))
    return {"input_ids": batch.input_ids, "labels": batch.labels, "response_mask": batch.response_mask}


def compute_entropy(logits: Tensor) -> Tensor:
    """H = -sum_v p_v log p_v, p = softmax(z), in nats, of the next-token distributions: z (B, T, V) gives (B, T).

    Shannon's entropy (Bell System Technical Journal 27, 1948), by log-softmax (logsumexp), so that no logit over- or
    underflows, in float32 at least.
    """
    return entropy_from_logits(logits)


def get_response_log_probs(
    model: nn.Module, input_ids: Tensor, labels: Tensor, return_token_entropy: bool = False
) -> dict[str, Tensor]:
    """log p(y_t | x_<=t) of every label y, padding and prompt included, from input ids x: both (B, T), on one device.

    The terms of log p(y | x) = sum_t log p(y_t | x, y_<t), the chain rule of an autoregressive model, which every loss
    here is made of. Returns `log_probs` (B, T), in nats, and `token_entropy` (B, T), without gradient, if asked. The
    model is a Hugging Face causal language model whose head is linear; its train or eval mode is the caller's.
    """
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
    """Backward of mean_b [sum_t m_t (-log p_t) / constant] / accumulation steps; that loss, and metadata.

    Maximum likelihood of the demonstrated responses (the supervised step of arXiv:2203.02155, section 3.5).
    `policy_log_probs` and `response_mask` are (B, T); the loss is a scalar without gradient. Metadata: `token_nll`,
    the mean of -log p over the response tokens, and their number. Each of the accumulation's micro-batches must have
    the same B, or the mean over all is not theirs. Raises ValueError for a constant that is not positive.
    """
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


def evaluate_vllm(
    vllm_model: Any,
    reward_fn: RewardFn,
    prompts: Sequence[str],
    eval_sampling_params: Any,
    ground_truths: Sequence[str] | None = None,
    output_path: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """Generate with a `vllm.LLM`, grade every output, and return one JSON-ready row per generation, prompt by prompt.

    `eval_sampling_params` is a `vllm.SamplingParams`; the engine's own template and tokens are used as they are.
    `reward_fn` is called with (response, ground truth), without `ground_truths` with (response, prompt), which finds
    the truth by the prompt. A row holds prompt, response, ground_truth, its token count, finish and stop reason, and
    what `reward_fn` returned. `output_path` also writes the rows, as JSON lines.
    Raises ValueError if the ground truths, or what the engine returns, are not one per prompt.
    """
    truths = list(prompts) if ground_truths is None else list(ground_truths)
    if len(truths) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(truths)} ground truths: give one for each prompt")
    requests = vllm_model.generate(list(prompts), eval_sampling_params)
    if len(requests) != len(prompts):
        raise ValueError(f"the engine answered {len(requests)} of {len(prompts)} prompts: look into its log")
    rows = []
    for prompt, truth, request in zip(prompts, truths, requests, strict=True):
        for output in request.outputs:
            row = {
                "prompt": prompt,
                "response": output.text,
                "ground_truth": None if ground_truths is None else truth,
                "response_length": len(output.token_ids),
                "finish_reason": output.finish_reason,
                "stop_reason": output.stop_reason,
            }
            rows.append(row | dict(reward_fn(output.text, truth)))
    if output_path is not None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(output_path).write_text(lines, encoding="utf-8")
    return rows


def compute_group_normalized_rewards(
    reward_fn: RewardFn,
    rollout_responses: Sequence[str],
    repeated_ground_truths: Sequence[str],
    group_size: int,
    advantage_eps: float,
    normalize_by_std: bool,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Advantages (B,), raw rewards (B,) and metadata of B = P * G responses, groups of `group_size` in a row.

    A = r - mean(group), divided by std(group) + `advantage_eps` if asked (GRPO, arXiv:2402.03300, section 4.1.2; not
    divided: Dr. GRPO, arXiv:2503.20783); std is the unbiased one, and a group of equal rewards gets exactly 0.
    Metadata: mean, std, minimum and maximum of the rewards, mean std within groups, share of groups of equal reward,
    mean format and answer reward. Raises ValueError if B is 0 or no multiple of the group size, or the ground truths
    are not B.
    """
    if group_size <= 0 or not rollout_responses or len(rollout_responses) % group_size:
        raise ValueError(
            f"{len(rollout_responses)} responses do not split into groups of {group_size}: give whole groups, in a row"
        )
    if len(repeated_ground_truths) != len(rollout_responses):
        raise ValueError(
            f"{len(rollout_responses)} responses but {len(repeated_ground_truths)} ground truths: repeat each "
            "problem's truth for every response to it"
        )
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
    """-A log p per token: (B, 1) and (B, T) give (B, T), no gradient through A.

    REINFORCE (Williams, Machine Learning 8, 1992), whose gradient is A times that of log p. Raises ValueError for
    rewards or advantages of another shape.
    """
    return losses.reinforce_loss(raw_rewards_or_advantages, policy_log_probs)


def compute_grpo_clip_loss(
    advantages: Tensor, policy_log_probs: Tensor, old_log_probs: Tensor, cliprange: ClipRange
) -> tuple[Tensor, dict[str, Tensor]]:
    """-min(r A, clip(r, 1 - c, 1 + c) A) per token, r = p / p_old, and per-token metadata.

    GRPO's surrogate (arXiv:2402.03300, eq. 3, without its mean and its KL), PPO's clip (arXiv:1707.06347, eq. 7).
    A (B, 1), both log-probs and the loss (B, T). `cliprange` is c, or a pair (low, high) for [1 - low, 1 + high].
    Metadata (B, T): `ratio_mean` (r), `approx_kl`, and `clip_fraction_low`, `clip_fraction_high`, 1 where the
    clipped side was taken. Raises ValueError for other shapes or a range not positive.
    """
    result = losses.grpo_clip_loss(advantages, policy_log_probs, old_log_probs, cliprange)
    return result.loss, result.statistics


def compute_policy_gradient_loss(
    policy_log_probs: Tensor,
    loss_type: LossType,
    raw_rewards: Tensor | None = None,
    advantages: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    cliprange: ClipRange | None = None,
    response_mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The per-token loss (B, T) that `loss_type` names, and per-token metadata.

    no_baseline -R log p, reinforce_with_baseline -A log p, grpo_clip -min(r A, clip(r) A), grpo_no_clip -r A, and gspo
    (arXiv:2507.18071), cispo (arXiv:2506.13585) as `alignment_core.losses` has them; the sources of the others stand
    with their own functions here. `no_baseline` weighs by `raw_rewards` R (B, 1), the others by `advantages` A (B, 1);
    all but the first two need `old_log_probs` (B, T), and, grpo_no_clip apart, `cliprange`; gspo needs `response_mask`
    (B, T). Raises ValueError for what is missing.
    """
    name, weights = ("raw_rewards", raw_rewards) if loss_type == "no_baseline" else ("advantages", advantages)
    if weights is None:
        raise ValueError(f"loss_type {loss_type!r} needs {name}, of shape (B, 1)")
    result = losses.policy_gradient_loss(loss_type, policy_log_probs, weights, old_log_probs, cliprange, response_mask)
    return result.loss, result.statistics


def grpo_microbatch_train_step(
    policy_log_probs: Tensor,
    response_mask: Tensor,
    gradient_accumulation_steps: int,
    loss_type: LossType,
    raw_rewards: Tensor | None = None,
    advantages: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    cliprange: ClipRange | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Backward of mean_b [masked mean_t loss] / accumulation steps; that loss, and metadata averaged over tokens.

    1/G sum_i 1/|o_i| sum_t of GRPO's objective (arXiv:2402.03300, eq. 3). Arguments as in
    `compute_policy_gradient_loss`, `response_mask` (B, T) bool or 0/1; the loss is a scalar without gradient. A
    response without tokens adds 0 and counts in B. Raises ValueError for what is missing.
    """
    per_token, statistics = compute_policy_gradient_loss(
        policy_log_probs, loss_type, raw_rewards, advantages, old_log_probs, cliprange, response_mask
    )
    denominator = len(policy_log_probs) * gradient_accumulation_steps
    loss = losses.aggregate(per_token, response_mask, "masked_mean", denominator)
    loss.backward()
    metadata = {name: masked_mean(values, response_mask) for name, values in statistics.items()}
    return loss.detach(), metadata


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
