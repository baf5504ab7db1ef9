"""Direct preference optimization: pairs of responses to one prompt, against a reference that is the start policy.

    loss = -log sigmoid(beta [(log p(y_w) - log p_ref(y_w)) - (log p(y_l) - log p_ref(y_l))]),   mean over pairs

log p(y) is the SUM over the response's tokens, y_w the chosen and y_l the rejected response. The reference never
changes, so its log-probs are computed once, before the first step, by the path that trains; no second model is held.
As in `alignment_core.sft` the step is the cursor, and a resumed run is the run it would have been.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import TokenSequence, collate, micro_batches
from alignment_core.checkpoints import LoopIdentity, checkpoint_if_due, resume
from alignment_core.engine import Engine
from alignment_core.losses import dpo_loss, implicit_rewards
from alignment_core.models import ComputeDtype, device_of, disable_dropout, pad_id
from alignment_core.optimization import apply_update, checked_loss, make_optimizer
from alignment_core.processes import own_run, share_of, sum_over_processes
from alignment_core.records import PreferencePair
from alignment_core.runs import RunContext
from alignment_core.sampling import encode_trace
from alignment_core.sft import Validate, batch_indices, validation_due
from alignment_core.step_metrics import peak_memory_gb
from alignment_core.training_config import DPOConfig

PAIR_MEANS = (
    "loss",
    "implicit_accuracy",
    "chosen_log_probs",
    "rejected_log_probs",
    "chosen_reward",
    "rejected_reward",
    "reward_margin",
)
"""What a step reports as means over its pairs, as train/…; rewards are the implicit ones."""


@dataclass(frozen=True)
class TokenPair:
    """A preference pair as token ids; both sequences have the same prompt."""

    chosen: TokenSequence
    rejected: TokenSequence

    @property
    def length(self) -> int:
        """Tokens of the longer sequence."""
        return max(self.chosen.length, self.rejected.length)

    @property
    def response_tokens(self) -> int:
        """Tokens of both responses."""
        return len(self.chosen.response_ids) + len(self.rejected.response_ids)


def encode_pair(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, stop: Sequence[str]) -> TokenPair:
    """A pair's own token ids, or its texts tokenized apart from the prompt.

    A text that no `stop` string ends gets EOS, or the model would never learn to end it.
    """
    if pair.prompt_ids is not None and pair.chosen_ids is not None and pair.rejected_ids is not None:
        return TokenPair(
            TokenSequence(pair.prompt_ids, pair.chosen_ids), TokenSequence(pair.prompt_ids, pair.rejected_ids)
        )
    chosen, rejected = (
        encode_trace(tokenizer, pair.prompt, text, append_eos=not text.rstrip().endswith(tuple(stop)))
        for text in (pair.chosen_response, pair.rejected_response)
    )
    return TokenPair(chosen, rejected)


def train_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[TokenPair],
    config: DPOConfig,
    run: RunContext,
    seed: int,
    compute_dtype: ComputeDtype = "float32",
    validate: Validate | None = None,
) -> int:
    """Train `model` in place; return the number of optimizer steps.

    `model` holds the start policy, the reference of every pair, also where the run resumes. Emits every step
    train/… of `PAIR_MEANS`, train/{grad_norm, learning_rate, tokens}, times and peak memory; `validate`'s metrics at
    step 0, every `validate_every` steps and at the end.
    Raises ValueError if no pair fits, FloatingPointError if loss or gradient is not finite.
    """
    run = own_run(run)
    kept = _trainable(pairs, config.max_length, run)
    total = dpo_steps(len(kept), config)
    identity = LoopIdentity("dpo", seed, total, len(kept))
    disable_dropout(model)
    learner = _Learner(model, tokenizer, config, compute_dtype)
    run.say(learner.engine.attention)
    references = learner.sequence_log_probs(kept)
    optimizer = make_optimizer(model, config.optimizer)
    done = resume(run, model, optimizer, identity)
    model.train()
    if done == 0 and validate is not None:
        run.emit(0, validate(0, model), total)
    for step in range(done, total):
        started = time.perf_counter()
        rows = batch_indices(len(kept), config.batch_size, step, seed)
        metrics = learner.accumulate([kept[row] for row in rows], references[list(rows)])
        batch = [sequence for row in rows for sequence in (kept[row].chosen, kept[row].rejected)]
        checked_loss(metrics["train/loss"], step + 1, run, batch)
        report = apply_update(model, optimizer, config.optimizer, step, total)
        seconds = time.perf_counter() - started
        metrics |= {
            "train/grad_norm": report.grad_norm,
            "train/learning_rate": report.learning_rate,
            "time/update": seconds,
            "time/tokens_per_second": metrics["train/tokens"] / max(seconds, 1e-9),
            "memory/peak_gb": peak_memory_gb(device_of(model)),
        }
        if validate is not None and validation_due(step + 1, total, config.validate_every):
            metrics |= validate(step + 1, model)
        run.emit(step + 1, metrics, total)
        checkpoint_if_due(run, model, optimizer, step + 1, identity)
    model.eval()
    return total


def dpo_steps(pairs: int, config: DPOConfig) -> int:
    """Optimizer steps over `pairs`: ceil(pairs / batch_size) per epoch."""
    return -(-pairs // config.batch_size) * config.epochs


class _Learner:
    """Scores of pairs under a model, and the gradient of one optimizer batch."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: DPOConfig,
        compute_dtype: ComputeDtype,
    ) -> None:
        self.engine = Engine(model, tokenizer, config, compute_dtype)
        self._config, self._pad = config, pad_id(model, tokenizer)

    @torch.no_grad()
    def sequence_log_probs(self, pairs: Sequence[TokenPair]) -> Tensor:
        """(pairs, 2) log-probs of chosen and rejected responses under the model as it is."""
        scores = torch.zeros(len(pairs), 2, device=self.engine.device)
        for rows in self._parts(pairs):
            scores[rows] = self._scores([pairs[row] for row in rows])
        return sum_over_processes(scores)

    def accumulate(self, pairs: Sequence[TokenPair], references: Tensor) -> dict[str, float]:
        """Leave the gradient of one optimizer batch in the weights; its metrics, the same for every micro-batch size.

        `references` (pairs, 2) are the start policy's log-probs.
        """
        sums = torch.zeros(len(PAIR_MEANS), dtype=torch.float64, device=self.engine.device)
        beta, smoothing = self._config.beta, self._config.label_smoothing
        for rows in self._parts(pairs):
            policy, reference = self._scores([pairs[row] for row in rows]), references[rows]
            losses = dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], beta, smoothing)
            self.engine.backward(losses.sum() / len(pairs))
            rewards = implicit_rewards(policy, reference, beta)
            margins = rewards[:, 0] - rewards[:, 1]
            columns = (losses, margins > 0, *policy.T, *rewards.T, margins)
            sums += torch.stack([column.detach().double().sum() for column in columns])
        self.engine.sum_gradients()
        means = zip(PAIR_MEANS, (sum_over_processes(sums) / len(pairs)).tolist(), strict=True)
        return {f"train/{name}": value for name, value in means} | {
            "train/tokens": float(sum(pair.response_tokens for pair in pairs))
        }

    def _scores(self, pairs: Sequence[TokenPair]) -> Tensor:
        """(pairs, 2) sums of response log-probs, chosen and rejected."""
        sequences = [sequence for pair in pairs for sequence in (pair.chosen, pair.rejected)]
        scores = self.engine.scores(collate(sequences, self._pad, self.engine.device))
        return scores.log_probs.sum(-1).view(-1, 2)

    def _parts(self, pairs: Sequence[TokenPair]) -> list[list[int]]:
        """This process's micro-batches. Pairs stay whole: a pair is two rows of its longer length."""
        parts = micro_batches([2 * pair.length for pair in pairs], self._config.micro_batch_tokens)
        return [parts[index] for index in share_of(len(parts))]


def _trainable(pairs: Sequence[TokenPair], max_length: int, run: RunContext) -> list[TokenPair]:
    """Pairs that differ, are not empty and not too long; the others are left out, and counted aloud."""
    kept = [pair for pair in pairs if _differs(pair) and pair.length <= max_length]
    if len(kept) < len(pairs):
        left_out = len(pairs) - len(kept)
        run.say(f"left out {left_out} of {len(pairs)} pairs: empty, equal, or longer than {max_length} tokens")
    if not kept:
        raise ValueError(f"none of {len(pairs)} pairs can be used: give more, or raise dpo.max_length {max_length}")
    return kept


def _differs(pair: TokenPair) -> bool:
    both = pair.chosen.response_ids and pair.rejected.response_ids
    return bool(both) and pair.chosen.response_ids != pair.rejected.response_ids
