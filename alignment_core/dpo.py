"""Direct preference optimization: pairs of responses to one prompt, against a reference that is the start policy.

    loss = -log sigmoid(beta [(log p(y_w) - log p_ref(y_w)) - (log p(y_l) - log p_ref(y_l))]),   mean over pairs

log p(y) is the SUM over the response's tokens, y_w the chosen and y_l the rejected response. The reference never
changes, so its log-probs are computed once, before the first step, by the path that trains; no second model is held.
A micro-batch holds whole pairs, packed under the token budget with the prompt of a pair once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import Batch, TokenSequence
from alignment_core.engine import Engine
from alignment_core.epochs import Validate, train_epochs
from alignment_core.losses import dpo_loss, implicit_rewards
from alignment_core.models import ComputeDtype, disable_dropout
from alignment_core.processes import own_run, sum_over_processes
from alignment_core.records import PreferencePair
from alignment_core.runs import RunContext
from alignment_core.sampling import encode_trace
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

    `model` holds the start policy, the reference of every pair, also where the run resumes. Emits train/… of
    `PAIR_MEANS`, train/tokens and what `train_epochs` does.
    Raises ValueError if no pair fits, FloatingPointError if loss or gradient is not finite.
    """
    run = own_run(run)
    kept = _trainable(pairs, config.max_length, run)
    disable_dropout(model)
    learner = _Learner(Engine(model, tokenizer, config, compute_dtype), kept, config)
    return train_epochs("dpo", learner, len(kept), config, run, seed, validate)


class _Learner:
    """The objective of preferring the chosen responses of `pairs`, against the model as it is now."""

    def __init__(self, engine: Engine, pairs: Sequence[TokenPair], config: DPOConfig) -> None:
        self.engine, self._pairs = engine, pairs
        self._beta, self._smoothing = config.beta, config.label_smoothing
        self._references = self._start_scores()

    def sequences(self, rows: Sequence[int]) -> list[TokenSequence]:
        """Chosen and rejected of each pair, in turn."""
        return [sequence for row in rows for sequence in (self._pairs[row].chosen, self._pairs[row].rejected)]

    def accumulate(self, rows: Sequence[int]) -> dict[str, float]:
        """Leave the gradient of one optimizer batch in the weights; metrics, the same for every micro-batch size."""
        sums = torch.zeros(len(PAIR_MEANS), dtype=torch.float64, device=self.engine.device)
        for chosen, batch in self._micro_batches(rows):
            policy, reference = self._sums(batch), self._references[chosen]
            losses = dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], self._beta, self._smoothing)
            self.engine.backward(losses.sum() / len(rows))
            rewards = implicit_rewards(policy, reference, self._beta)
            margins = rewards[:, 0] - rewards[:, 1]
            columns = (losses, margins > 0, *policy.T, *rewards.T, margins)
            sums += torch.stack([column.detach().double().sum() for column in columns])
        self.engine.sum_gradients()
        means = zip(PAIR_MEANS, (sum_over_processes(sums) / len(rows)).tolist(), strict=True)
        return {f"train/{name}": value for name, value in means} | {
            "train/tokens": float(sum(self._pairs[row].response_tokens for row in rows))
        }

    @torch.no_grad()
    def _start_scores(self) -> Tensor:
        """(pairs, 2) log-probs of chosen and rejected responses under the model as it is."""
        scores = torch.zeros(len(self._pairs), 2, device=self.engine.device)
        for chosen, batch in self._micro_batches(range(len(self._pairs))):
            scores[chosen] = self._sums(batch)
        return sum_over_processes(scores)

    def _micro_batches(self, rows: Sequence[int]) -> Iterator[tuple[list[int], Batch]]:
        """This process's micro-batches: their pairs, and their sequences. A pair is never parted."""
        for part, batch in self.engine.micro_batches(self.sequences(rows), together=2):
            yield [rows[index // 2] for index in part[::2]], batch

    def _sums(self, batch: Batch) -> Tensor:
        """(pairs, 2) sums of response log-probs, chosen and rejected."""
        return self.engine.scores(batch).log_probs.sum(-1).view(-1, 2)


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
