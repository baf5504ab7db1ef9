"""Policy-gradient training on verifiable rewards: sample, grade, compare within groups, update.

One update per rollout batch is on-policy: the old log-probs are the new ones, detached. With several, the trainer
scores the whole batch once before the first update, by the same path that trains, and those scores are the old
policy of every ratio. The sampler's own log-probs never enter a ratio; they are compared, as train/sampler_gap, and
enter a loss only as the weights that `importance_cap` asks for. With a KL penalty a frozen copy of the start policy
scores each rollout batch once. `alignment_core.step_metrics` says what every step records.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import Batch
from alignment_core.checkpoints import LoopIdentity, checkpoint_if_due, resume, write_checkpoint
from alignment_core.config import RewardName, SamplingConfig
from alignment_core.engine import Engine
from alignment_core.epochs import Validate, validation_due
from alignment_core.hardware import memory_advice
from alignment_core.logprobs import gradient_of
from alignment_core.losses import (
    aggregate,
    batch_denominator,
    importance_weights,
    kl_to_reference,
    policy_gradient_loss,
)
from alignment_core.models import ComputeDtype, device_of, disable_dropout, frozen_copy
from alignment_core.optimization import StepGuard, UpdateReport, apply_update, make_optimizer
from alignment_core.overlap import Grader
from alignment_core.processes import gather, own_run, process_rank, sum_over_processes
from alignment_core.random_draws import permutation
from alignment_core.records import Problem
from alignment_core.rollouts import Rollout, collect_rollout, completion_rows, grader_for
from alignment_core.runs import RunContext
from alignment_core.sampling import Sampler, make_sampler
from alignment_core.seeding import derive_seed
from alignment_core.step_metrics import StepStatistics, peak_memory_gb, throughput
from alignment_core.time_budget import EvaluationAhead, TimeBudget
from alignment_core.training_config import GRPOConfig


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
    ahead: EvaluationAhead | None = None,
) -> int:
    """Train `model` in place; return the number of rollout steps asked for.

    `model` holds the start policy, also where the run resumes: a KL penalty pulls to the weights it comes with.
    final_state: new folder for weights and moments after the last step, from which a longer run can go on.
    ahead: the evaluation for which `config.time_budget_hours`, if there is one, leaves room.

    `config.min_tokens` overrides the sampling's own. Emits train/…, time/…, memory/… every step, `validate`'s and rows
    "rollouts" at step 0 (metrics only), every `validate_every` steps and at the end. A resumed step samples its
    rollouts again, from the same weights and seeds.
    Raises ValueError for settings under which the sampled policy is not the trained one, FloatingPointError if
    loss or gradient is not finite.
    """
    run = own_run(run)
    sampling = _training_sampling(sampling, config)
    total = config.n_grpo_steps
    identity = LoopIdentity("grpo", seed, total, len(problems))
    learner = _Learner(model, tokenizer, config, sampling, seed, compute_dtype)
    done = resume(run, model, learner.optimizer, identity)
    run.say(learner.engine.attention)
    disable_dropout(model)
    model.train()
    sampler = sampler or make_sampler(model, tokenizer, sampling, compute_dtype)
    if done == 0 and validate is not None:
        run.emit(0, validate(0, model), total)
    budget = TimeBudget(config, run, done, ahead)
    validated = done if validation_due(done, total, config.validate_every) else done - 1
    for step in range(done, total):
        if budget.is_spent():
            if validate is not None and validated < step:
                run.emit(step, validate(step, model), total)
            break
        started = time.perf_counter()
        sampler.update_weights(model)
        synced = time.perf_counter()
        rollout = collect_rollout(sampler, tokenizer, problems, config, sampling, grader_for(reward), seed, step)
        sampled = time.perf_counter()
        metrics = rollout.metrics | learner.learn(rollout, step, run) | {"time/sync": synced - started}
        metrics |= {"time/step": time.perf_counter() - started, "memory/peak_gb": peak_memory_gb(device_of(model))}
        metrics |= throughput(metrics, config.epochs_per_rollout_batch)
        if validation_due(step + 1, total, config.validate_every):
            validated = step + 1
            rows = completion_rows(rollout.problems, rollout.completions, rollout.grades, config.rollouts_logged)
            run.emit_rows("rollouts", step + 1, rows)
            metrics |= validate(step + 1, model) if validate is not None else {}
        run.emit(step + 1, metrics, total)
        budget.note(time.perf_counter() - started, sampled - synced)
        checkpoint_if_due(run, model, learner.optimizer, step + 1, identity)
    if final_state is not None and process_rank() == 0:
        final_state.mkdir()
        write_checkpoint(final_state, model, learner.optimizer, total, identity)
    model.eval()
    return total


def updates_per_step(config: GRPOConfig) -> int:
    """Optimizer steps per rollout batch."""
    return config.epochs_per_rollout_batch * (config.rollout_batch_size // config.train_batch_size)


@dataclass
class _Scored:
    """What is known of a rollout before its first update, per sequence (B vectors of length T_b each)."""

    old_log_probs: list[Tensor] | None
    """The trainer's policy; None on-policy, where the update itself has them."""
    ref_log_probs: list[Tensor] | None
    """The start policy; None without a KL penalty."""


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
        self.engine = Engine(model, tokenizer, config, compute_dtype, sampling.temperature)
        self._model, self._config, self._sampling, self._seed = model, config, sampling, seed
        self._reference = None
        if config.kl_coefficient:
            with memory_advice("grpo.kl_coefficient above 0 holds a second model: set it to 0, or take a smaller one"):
                self._reference = frozen_copy(model, compute_dtype)

    def learn(self, rollout: Rollout, step: int, run: RunContext) -> dict[str, float]:
        """All updates of one rollout batch; metrics are means over tokens, over updates for loss and norm."""
        started = time.perf_counter()
        tokens = sum(len(item.response_ids) for item in rollout.completions)
        statistics = StepStatistics()
        scored = self._score(rollout, statistics)
        seconds = time.perf_counter() - started
        updates, losses, reports = updates_per_step(self._config), [], []
        sequences = rollout.sequences
        for number, rows in enumerate(self._train_batches(len(rollout.completions), step)):
            loss = self._accumulate(rollout, rows, scored, statistics)
            guard = StepGuard(run, step + 1, [sequences[row] for row in rows])
            losses.append(guard.finite("loss", loss))
            reports.append(self._update(step * updates + number, guard))
        return statistics.metrics(tokens) | {
            "train/loss": sum(losses) / len(losses),
            "train/grad_norm": sum(report.grad_norm for report in reports) / len(reports),
            "train/learning_rate": reports[-1].learning_rate,
            "time/score": seconds,
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

    def _update(self, index: int, guard: StepGuard) -> UpdateReport:
        total = self._config.n_grpo_steps * updates_per_step(self._config)
        return apply_update(self._model, self.optimizer, self._config.optimizer, index, total, guard)

    def _accumulate(self, rollout: Rollout, rows: Sequence[int], scored: _Scored, statistics: StepStatistics) -> float:
        """Loss of one optimizer batch, its gradient left in the weights; statistics are added.

        Sequences of weight 0, unless a KL penalty moves them, go without a backward pass; they count in the
        denominator and in the statistics.
        """
        lengths = [len(rollout.completions[row].response_ids) for row in rows]
        denominator = batch_denominator(lengths, self._config.length_normalization)
        loss = torch.zeros((), device=self.engine.device)
        for active in (True, False):
            chosen = [row for row in rows if self._teaches(rollout, row) == active]
            with torch.set_grad_enabled(active):
                for part, batch in self._micro_batches(rollout, chosen):
                    share = self._loss(rollout, part, batch, scored, denominator, statistics)
                    if active:
                        self.engine.backward(share)
                    loss += share.detach()
        self.engine.sum_gradients()
        return float(sum_over_processes(loss))

    def _teaches(self, rollout: Rollout, row: int) -> bool:
        return rollout.weights[row].item() != 0 or self._reference is not None

    def _loss(
        self,
        rollout: Rollout,
        rows: Sequence[int],
        batch: Batch,
        scored: _Scored,
        denominator: float,
        statistics: StepStatistics,
    ) -> Tensor:
        """One micro-batch's share of the loss; its statistics are added."""
        config, mask, epoch_share = self._config, batch.response_mask, 1 / self._config.epochs_per_rollout_batch
        weights = rollout.weights[list(rows)].to(self.engine.device)[:, None]
        expected = self._known_gradient(weights, mask, scored, denominator)
        scores = self.engine.scores(batch, scored.old_log_probs is None, expected)
        sampled = _sampler_log_probs(rollout, rows, mask)
        if scored.old_log_probs is None:
            old = scores.log_probs.detach()
            statistics.add_policy(scores.log_probs, scores.entropy, sampled, mask)
        else:
            old = _spread([scored.old_log_probs[row] for row in rows], mask)
        token_loss = policy_gradient_loss(config.loss_type, scores.log_probs, weights, old, config.clip, mask)
        statistics.add_loss(token_loss, mask, epoch_share)
        per_token = token_loss.loss
        if config.importance_cap is not None:
            trust = importance_weights(old, _required(sampled), config.importance_cap)
            statistics.add("importance_capped", (trust >= config.importance_cap).to(old.dtype), mask, epoch_share)
            per_token = per_token * trust
        if scored.ref_log_probs is not None:
            reference = _spread([scored.ref_log_probs[row] for row in rows], mask)
            divergence = kl_to_reference(scores.log_probs, reference)
            statistics.add("kl_reference", divergence, mask, epoch_share)
            per_token = per_token + config.kl_coefficient * divergence
        return self._aggregate(per_token, mask, denominator)

    def _aggregate(self, per_token: Tensor, mask: Tensor, denominator: float) -> Tensor:
        constant = self._config.normalize_constant or float(self._sampling.max_tokens)
        return aggregate(per_token, mask, self._config.length_normalization, denominator, constant)

    def _known_gradient(self, weights: Tensor, mask: Tensor, scored: _Scored, denominator: float) -> Tensor | None:
        """What the loss will send back to the log-probs, where it does not depend on them: on-policy, nothing added."""
        config = self._config
        if scored.old_log_probs is not None or scored.ref_log_probs is not None or config.importance_cap is not None:
            return None

        def share_of(log_probs: Tensor) -> Tensor:
            old = log_probs.detach()
            token_loss = policy_gradient_loss(config.loss_type, log_probs, weights, old, config.clip, mask)
            return self._aggregate(token_loss.loss, mask, denominator)

        return gradient_of(share_of, mask)

    @torch.no_grad()
    def _score(self, rollout: Rollout, statistics: StepStatistics) -> _Scored:
        """What needs scoring once, before the first update: old log-probs off-policy, those of a reference."""
        reference = None if self._reference is None else self._score_under(self._reference, rollout)
        old = None if self._config.on_policy else self._score_under(self._model, rollout, statistics)
        return _Scored(old, reference)

    def _score_under(
        self, model: PreTrainedModel, rollout: Rollout, statistics: StepStatistics | None = None
    ) -> list[Tensor]:
        """Log-probs of every response, B vectors of length T_b; statistics of the policy are added where given."""
        log_probs: dict[int, Tensor] = {}
        for rows, batch in self._micro_batches(rollout, range(len(rollout.completions))):
            mask = batch.response_mask
            scores = self.engine.scores(batch, with_entropy=statistics is not None, model=model)
            if statistics is not None:
                sampled = _sampler_log_probs(rollout, rows, mask)
                statistics.add_policy(scores.log_probs, scores.entropy, sampled, mask)
            for row, values, own in zip(rows, scores.log_probs, mask, strict=True):
                log_probs[row] = values[own]
        # Through the CPU: what comes from another process must not open a context on that one's GPU.
        for others in gather({row: values.cpu() for row, values in log_probs.items()}):
            log_probs |= {row: values.to(self.engine.device) for row, values in others.items()}
        return [log_probs[row] for row in range(len(log_probs))]

    def _micro_batches(self, rollout: Rollout, rows: Sequence[int]) -> Iterator[tuple[list[int], Batch]]:
        sequences = rollout.sequences
        for part, batch in self.engine.micro_batches([sequences[row] for row in rows]):
            yield [rows[index] for index in part], batch


def _sampler_log_probs(rollout: Rollout, rows: Sequence[int], mask: Tensor) -> Tensor | None:
    """(B, T) log-probs by which the tokens were drawn; None where the sampler kept none."""
    kept = [rollout.completions[row].sampler_log_probs for row in rows]
    present = [values for values in kept if values is not None]
    if len(present) < len(kept):
        return None
    return _spread([torch.tensor(values, device=mask.device) for values in present], mask)


def _required(sampler_log_probs: Tensor | None) -> Tensor:
    if sampler_log_probs is None:
        raise ValueError(
            "grpo.importance_cap needs the sampler's log-probs, and this sampler keeps none: set it to null"
        )
    return sampler_log_probs


def _spread(values: Sequence[Tensor], mask: Tensor) -> Tensor:
    """B vectors over response tokens -> (B, T), 0 outside the mask."""
    flat = torch.cat(list(values))
    return torch.zeros(mask.shape, dtype=flat.dtype, device=mask.device).masked_scatter(mask, flat)


def _training_sampling(sampling: SamplingConfig, config: GRPOConfig) -> SamplingConfig:
    """Sampling of rollouts: `min_tokens` is the loop's, and nothing may bend the distribution off the policy's."""
    if sampling.top_p != 1 or sampling.temperature == 0:
        raise ValueError(
            "rollouts must follow the policy itself: set sampling.top_p to 1 and sampling.temperature above 0"
        )
    config.require_overlong_room(sampling.max_tokens)
    return sampling.model_copy(update={"min_tokens": config.min_tokens})
