"""Policy-gradient training on verifiable rewards: sample, grade, compare within groups, update.

One update per rollout batch is on-policy: the old log-probs are the new ones, detached. With several, the trainer
scores the whole batch once before the first update, by the same path that trains, and those scores are the old
policy of every ratio. The sampler's own log-probs never enter a loss; they are compared, as train/sampler_gap.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import Batch, collate, micro_batches
from alignment_core.checkpoints import LoopIdentity, checkpoint_if_due, resume, write_checkpoint
from alignment_core.config import GRPOConfig, RewardName, SamplingConfig
from alignment_core.logprobs import TokenScores, response_log_probs
from alignment_core.losses import aggregate, batch_denominator, policy_gradient_loss, token_sums
from alignment_core.masking import masked_sum
from alignment_core.models import ComputeDtype, autocast, device_of, disable_dropout, pad_id, vocab_limit
from alignment_core.optimization import UpdateReport, apply_update, checked_loss, make_optimizer
from alignment_core.random_draws import permutation
from alignment_core.records import Problem
from alignment_core.rollouts import Grader, Rollout, collect_rollout, completion_rows, grader_for
from alignment_core.runs import RunContext
from alignment_core.sampling import Sampler, make_sampler
from alignment_core.seeding import derive_seed
from alignment_core.sft import Validate, validation_due

Sums = dict[str, Tensor]
"""Sums over response tokens (scalars on the device), by metric name."""


def train_grpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    config: GRPOConfig,
    sampling: SamplingConfig,
    reward: RewardName | Grader,
    run: RunContext,
    seed: int,
    compute_dtype: ComputeDtype = "float32",
    validate: Validate | None = None,
    sampler: Sampler | None = None,
    final_state: Path | None = None,
) -> int:
    """Train `model` in place; return the number of rollout steps.

    final_state: new folder for weights and moments after the last step, from which a longer run can go on.

    `config.min_tokens` overrides the sampling's own. Emits train/…, time/… every step, `validate`'s metrics and rows
    "rollouts" at step 0 (metrics only), every `validate_every` steps and at the end. A resumed step samples its
    rollouts again, from the same weights and seeds.
    Raises ValueError for settings under which the sampled policy is not the trained one, FloatingPointError if
    loss or gradient is not finite.
    """
    sampling = _training_sampling(sampling, config)
    total = config.n_grpo_steps
    identity = LoopIdentity("grpo", seed, total, len(problems))
    learner = _Learner(model, tokenizer, config, sampling, seed, compute_dtype)
    done = resume(run, model, learner.optimizer, identity)
    disable_dropout(model)
    model.train()
    sampler = sampler or make_sampler(model, tokenizer, sampling, compute_dtype)
    if done == 0 and validate is not None:
        run.emit(0, validate(0, model), total)
    for step in range(done, total):
        sampler.update_weights(model)
        rollout = collect_rollout(sampler, tokenizer, problems, config, sampling, grader_for(reward), seed, step)
        metrics = rollout.metrics | learner.learn(rollout, step)
        if validation_due(step + 1, total, config.validate_every):
            rows = completion_rows(rollout.problems, rollout.completions, rollout.grades, config.rollouts_logged)
            run.emit_rows("rollouts", step + 1, rows)
            metrics |= validate(step + 1, model) if validate is not None else {}
        run.emit(step + 1, metrics, total)
        checkpoint_if_due(run, model, learner.optimizer, step + 1, identity)
    if final_state is not None:
        final_state.mkdir()
        write_checkpoint(final_state, model, learner.optimizer, total, identity)
    model.eval()
    return total


def updates_per_step(config: GRPOConfig) -> int:
    """Optimizer steps per rollout batch."""
    return config.epochs_per_rollout_batch * (config.rollout_batch_size // config.train_batch_size)


@dataclass
class _Scored:
    """What the trainer says of a rollout before its first update, per sequence (B lists of length T_b)."""

    log_probs: list[Tensor]
    sums: Sums


class _Learner:
    """The update half of a step: everything between a rollout and changed weights."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: GRPOConfig,
        sampling: SamplingConfig,
        seed: int,
        compute_dtype: ComputeDtype,
    ) -> None:
        self.optimizer = make_optimizer(model, config.optimizer)
        self._model, self._config, self._sampling, self._seed = model, config, sampling, seed
        self._device, self._compute_dtype = device_of(model), compute_dtype
        self._pad, self._vocab_limit = pad_id(model, tokenizer), vocab_limit(tokenizer)

    def learn(self, rollout: Rollout, step: int) -> dict[str, float]:
        """All updates of one rollout batch; metrics are means over tokens, over updates for loss and norm."""
        started = time.perf_counter()
        tokens = sum(len(item.response_ids) for item in rollout.completions)
        scored = None if self._config.on_policy else self._score(rollout)
        updates, epochs = updates_per_step(self._config), self._config.epochs_per_rollout_batch
        sums: Sums = {} if scored is None else dict(scored.sums)
        losses, reports = [], []
        for number, rows in enumerate(self._train_batches(len(rollout.completions), step)):
            loss, part = self._accumulate(rollout, rows, scored)
            losses.append(checked_loss(loss, step + 1))
            # Every token is seen once per epoch; dividing by the epochs makes the sums comparable with one pass.
            _add(sums, {name: value / epochs for name, value in part.items()})
            reports.append(self._update(step * updates + number))
        metrics = {"train/ratio_mean": 1.0, "train/clip_fraction_low": 0.0, "train/clip_fraction_high": 0.0}
        metrics |= {f"train/{name}": float(value) / tokens for name, value in sums.items()}
        return metrics | {
            "train/loss": sum(losses) / len(losses),
            "train/grad_norm": sum(report.grad_norm for report in reports) / len(reports),
            "train/learning_rate": reports[-1].learning_rate,
            "time/update": time.perf_counter() - started,
        }

    def _train_batches(self, size: int, step: int) -> Iterator[Sequence[int]]:
        """Sequences of each optimizer batch; off-policy epochs are shuffled by (seed, step, epoch)."""
        if self._config.on_policy:
            yield range(size)
            return
        for epoch in range(self._config.epochs_per_rollout_batch):
            order = permutation(size, derive_seed(self._seed, "minibatch", step, epoch))
            for start in range(0, size, self._config.train_batch_size):
                yield order[start : start + self._config.train_batch_size]

    def _update(self, index: int) -> UpdateReport:
        total = self._config.n_grpo_steps * updates_per_step(self._config)
        for weight in self._model.parameters():
            # A batch without any advantage has gradient zero, not none: the moments decay as they should.
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        return apply_update(self._model, self.optimizer, self._config.optimizer, index, total)

    def _accumulate(self, rollout: Rollout, rows: Sequence[int], scored: _Scored | None) -> tuple[float, Sums]:
        """Loss of one optimizer batch, its gradient left in the weights, and sums of its statistics.

        Sequences of weight 0 go without a backward pass; they count in the denominator and in the statistics.
        """
        lengths = [len(rollout.completions[row].response_ids) for row in rows]
        denominator = batch_denominator(lengths, self._config.length_normalization)
        loss = torch.zeros((), device=self._device)
        sums: Sums = {}
        for active in (True, False):
            chosen = [row for row in rows if (rollout.weights[row].item() != 0) == active]
            with torch.set_grad_enabled(active):
                for part, batch in self._micro_batches(rollout, chosen):
                    share, statistics = self._loss(rollout, part, batch, scored, denominator)
                    _add(sums, statistics)
                    if active:
                        share.backward()
                    loss += share.detach()
        return float(loss), sums

    def _loss(
        self, rollout: Rollout, rows: Sequence[int], batch: Batch, scored: _Scored | None, denominator: float
    ) -> tuple[Tensor, Sums]:
        """One micro-batch's share of the loss, and the sums of its statistics."""
        config, mask = self._config, batch.response_mask
        scores = self._scores(batch, with_entropy=scored is None)
        old = scores.log_probs.detach() if scored is None else _spread([scored.log_probs[row] for row in rows], mask)
        weights = rollout.weights[list(rows)].to(self._device)[:, None]
        token_loss = policy_gradient_loss(config.loss_type, scores.log_probs, weights, old, config.cliprange)
        sums = token_sums(token_loss.statistics, mask)
        if scored is None:
            _add(sums, _policy_sums(scores, rollout, rows, mask))
        constant = float(self._sampling.max_tokens)
        return aggregate(token_loss.loss, mask, config.length_normalization, denominator, constant), sums

    @torch.no_grad()
    def _score(self, rollout: Rollout) -> _Scored:
        """Old log-probs of every sequence, once, before the first update."""
        log_probs: dict[int, Tensor] = {}
        sums: Sums = {}
        for rows, batch in self._micro_batches(rollout, range(len(rollout.completions))):
            scores = self._scores(batch, with_entropy=True)
            _add(sums, _policy_sums(scores, rollout, rows, batch.response_mask))
            for row, values, mask in zip(rows, scores.log_probs, batch.response_mask, strict=True):
                log_probs[row] = values[mask]
        return _Scored([log_probs[row] for row in range(len(log_probs))], sums)

    def _scores(self, batch: Batch, with_entropy: bool) -> TokenScores:
        with autocast(self._device, self._compute_dtype):
            return response_log_probs(
                self._model, batch, self._sampling.temperature, with_entropy, vocab_limit=self._vocab_limit
            )

    def _micro_batches(self, rollout: Rollout, rows: Sequence[int]) -> Iterator[tuple[list[int], Batch]]:
        sequences = rollout.sequences
        for part in micro_batches([sequences[row].length for row in rows], self._config.micro_batch_tokens):
            chosen = [rows[index] for index in part]
            yield chosen, collate([sequences[row] for row in chosen], self._pad, self._device)


def _policy_sums(scores: TokenScores, rollout: Rollout, rows: Sequence[int], mask: Tensor) -> Sums:
    """Entropy of the policy, and its distance |log p - log p_sampler| from what was sampled."""
    sums: Sums = {}
    if scores.entropy is not None:
        sums["entropy"] = masked_sum(scores.entropy, mask)
    sampled = [rollout.completions[row].sampler_log_probs for row in rows]
    if all(values is not None for values in sampled):
        theirs = _spread([torch.tensor(values, device=mask.device) for values in sampled], mask)
        sums["sampler_gap"] = masked_sum((scores.log_probs.detach() - theirs).abs(), mask)
    return sums


def _spread(values: Sequence[Tensor], mask: Tensor) -> Tensor:
    """B vectors over response tokens -> (B, T), 0 outside the mask."""
    flat = torch.cat(list(values))
    return torch.zeros(mask.shape, dtype=flat.dtype, device=mask.device).masked_scatter(mask, flat)


def _add(sums: Sums, more: Sums) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def _training_sampling(sampling: SamplingConfig, config: GRPOConfig) -> SamplingConfig:
    """Sampling of rollouts: `min_tokens` is the loop's, and nothing may bend the distribution off the policy's."""
    if sampling.top_p != 1 or sampling.temperature == 0:
        raise ValueError(
            "rollouts must follow the policy itself: set sampling.top_p to 1 and sampling.temperature above 0"
        )
    return sampling.model_copy(update={"min_tokens": config.min_tokens})
