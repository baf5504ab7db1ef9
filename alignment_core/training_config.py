"""Settings of the training loops: optimizer, fine-tuning, policy gradients, preferences. Imports no torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from alignment_core.config_base import Config, NonNegative, Positive, Rate

LossType = Literal["no_baseline", "reinforce_with_baseline", "grpo_clip", "grpo_no_clip", "gspo", "cispo"]
Attention = Literal["auto", "padded"]
LengthNormalization = Literal["masked_mean", "masked_normalize", "token_mean", "constant"]
Baseline = Literal["group_mean", "leave_one_out"]

CLIPPED: frozenset[LossType] = frozenset({"grpo_clip", "gspo", "cispo"})
"""Losses that bound the ratio."""
ON_POLICY_ONLY: frozenset[LossType] = frozenset({"no_baseline", "reinforce_with_baseline"})
"""Losses without a ratio: right only for the policy that sampled."""


class OptimizerConfig(Config):
    """AdamW and its schedule."""

    learning_rate: Rate = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Rate = 1.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Course of the rate after warm-up; cosine and linear end at 0."""
    warmup_steps: NonNegative = 0


class EngineConfig(Config):
    """How a training loop computes: memory and speed, never the method."""

    ROUNDING = frozenset({"compile", "micro_batch_tokens", "recompute_activations"})

    micro_batch_tokens: Positive = 16_384
    """Upper bound of tokens in one forward pass, packed or padded; changes memory, not the gradient."""
    attention: Attention = "auto"
    """auto runs packed rows, without padding, by the fastest kernel of the device; padded is transformers' own way."""
    recompute_activations: bool = False
    """Gradient checkpointing: recompute activations in the backward pass, a third more work for far less memory."""
    compile: bool = False
    """Compile the layers with torch.compile; pays off in long runs on a GPU only."""


class SFTConfig(EngineConfig):
    """Supervised fine-tuning on prompt/response pairs; loss on response tokens only."""

    epochs: Positive = 3
    batch_size: Positive = 16
    """Examples per optimizer step."""
    max_length: Positive = 2048
    """Longer prompt+response pairs are left out, and counted."""
    optimizer: OptimizerConfig = OptimizerConfig(schedule="cosine", learning_rate=2e-5)
    validate_every: Positive = 50
    """Optimizer steps between points of the validation curve (one more at the end)."""
    validation_problems: NonNegative = 128
    """Dev problems sampled at each point; 0 switches the curve off."""


class DPOConfig(EngineConfig):
    """Direct preference optimization on pairs of responses to one prompt."""

    epochs: Positive = 1
    batch_size: Positive = 32
    """Pairs per optimizer step; a micro-batch holds whole pairs."""
    max_length: Positive = 2048
    """Pairs with a longer prompt+response are left out, and counted."""
    beta: Rate = 0.1
    """Strength of the pull to the reference: reward = beta x (log p - log p_ref)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of pairs whose labels are swapped; at one half the pairs would say nothing."""
    optimizer: OptimizerConfig = OptimizerConfig(schedule="linear", learning_rate=1e-6)
    validate_every: Positive = 50
    """Optimizer steps between points of the validation curve (one more at the end)."""
    validation_problems: NonNegative = 128
    """Dev problems sampled at each point; 0 switches the curve off."""


class PairsConfig(Config):
    """Where the preference pairs of DPO come from: samples of the start policy, or a file."""

    source: str | None = None
    """File or hub id of pairs; None mines them from samples of the model that DPO starts from."""
    render_prompts: bool = False
    """Put a source's prompts of no known form into the study's template; without it they are asked as they are."""
    questions: Positive | None = None
    """Train problems sampled; None means all."""
    samples_per_problem: Positive = 8
    min_tokens: NonNegative = 4
    """Shortest response the sampler may end."""
    max_per_problem: Positive = 2
    """Pairs per problem, at most."""
    rejected: Literal["any", "formatted"] = "any"
    """Which wrong samples may be rejected: any, or only formatted ones, so that a pair is about the answer alone."""


class GRPOConfig(EngineConfig):
    """The assignment's policy-gradient loop; names and defaults are its own."""

    OUTSIDE_KEY = frozenset({"keep_state", "rollouts_logged"})

    n_grpo_steps: Positive = 200
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    advantage_eps: Annotated[float, Field(ge=0)] = 1e-6
    rollout_batch_size: Positive = 256
    """Sequences sampled per step: B = P · G."""
    group_size: Positive = 8
    """G: samples per question."""
    epochs_per_rollout_batch: Positive = 1
    train_batch_size: Positive = 256
    """Sequences per optimizer step; equal to the rollout batch when on-policy."""
    loss_type: LossType = "reinforce_with_baseline"
    """no_baseline weighs by raw rewards, the others by advantages; gspo: arXiv:2507.18071, cispo: arXiv:2506.13585."""
    baseline: Baseline = "group_mean"
    """What a reward is compared with: the mean of its group, or of the others in it (RLOO, arXiv:2402.14740)."""
    use_std_normalization: bool = True
    length_normalization: LengthNormalization = "masked_mean"
    """Mean over a sequence's tokens, sum over a given constant, mean over the batch's tokens (DAPO), or sum over
    sampling.max_tokens (`constant`, Dr. GRPO)."""
    normalize_constant: Rate | None = None
    """Divisor of each sequence's sum, for masked_normalize."""
    cliprange: Rate = 0.2
    """Clip of the ratio to 1 ± cliprange, for the losses that clip."""
    clip_low: Annotated[float, Field(gt=0, le=1)] | None = None
    """Lower bound 1 - clip_low; None means cliprange."""
    clip_high: Rate | None = None
    """Upper bound 1 + clip_high; None means cliprange. DAPO's clip-higher is 0.28 over a clip_low of 0.2."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the k3 estimate of KL(policy || start policy) in the loss; above 0 a frozen copy is held in memory,
    2 bytes per parameter in bfloat16 (4 in float32), embeddings always in float32."""
    importance_cap: Annotated[float, Field(ge=1)] | None = None
    """C: weigh tokens by min(p_old / p_sampler, C), against a sampler that rounds otherwise than the trainer."""
    dynamic_sampling_rounds: NonNegative = 0
    """Extra rounds of sampling, at most, that replace groups of equal reward (DAPO); 0 keeps such groups."""
    overlong_buffer: NonNegative = 0
    """Last tokens before sampling.max_tokens over which a penalty grows from 0 to overlong_penalty (DAPO); 0: none."""
    overlong_penalty: Rate = 1.0
    """Penalty of a response of sampling.max_tokens, taken off its reward, where there is an overlong_buffer."""
    min_tokens: NonNegative = 4
    """Shortest response the sampler may end."""
    validate_every: Positive = 10
    validation_problems: NonNegative = 256
    rollouts_logged: NonNegative = 4
    """Rollouts kept in the record at each validation."""
    keep_state: bool | None = None
    """Keep the training state after the last step, so that a run of more steps goes on from there: 12 bytes per
    parameter, 18.5 GB at 1.5B, until `alignflow artifacts gc --states`. It needs a constant learning rate; None means
    wherever the rate is constant."""
    time_budget_hours: Rate | None = None
    """Wall-clock hours after which no further step begins, whatever n_grpo_steps says; None: no limit."""

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.rollout_batch_size % self.group_size:
            raise ValueError(
                f"grpo.rollout_batch_size {self.rollout_batch_size} is not a multiple of "
                f"grpo.group_size {self.group_size}: take a rollout batch of {self._whole_groups()}, for example"
            )
        if self.rollout_batch_size % self.train_batch_size:
            raise ValueError(
                f"grpo.rollout_batch_size {self.rollout_batch_size} is not a multiple of "
                f"grpo.train_batch_size {self.train_batch_size}: take a train batch that divides it, "
                f"{self.rollout_batch_size} for one update per batch"
            )
        if self.time_budget_hours is not None and self.optimizer.schedule != "constant":
            raise ValueError(
                f"grpo.time_budget_hours leaves the number of steps open, which a {self.optimizer.schedule} schedule "
                "needs: set grpo.optimizer.schedule to constant"
            )
        if self.keep_state and self.time_budget_hours is not None:
            raise ValueError(
                "grpo.keep_state is for runs of more steps, and grpo.time_budget_hours leaves their number open: "
                "leave one of them out"
            )
        if self.keep_state and self.optimizer.schedule != "constant":
            raise ValueError(
                f"grpo.keep_state goes with a constant learning rate: every step of a {self.optimizer.schedule} "
                "schedule depends on their number. Set grpo.optimizer.schedule to constant, or keep_state to false"
            )
        return self

    @model_validator(mode="after")
    def _advantages_teach(self) -> Self:
        raw = self.loss_type == "no_baseline"
        if self.group_size == 1 and not raw:
            raise ValueError("grpo.group_size 1 gives every advantage 0; take no_baseline or a larger group")
        if self.baseline == "leave_one_out" and raw:
            raise ValueError(
                "grpo.baseline leave_one_out has no effect on grpo.loss_type no_baseline: take "
                "reinforce_with_baseline for RLOO, or leave the baseline at group_mean"
            )
        if self.baseline == "leave_one_out" and self.use_std_normalization:
            raise ValueError(
                "grpo.baseline leave_one_out is not divided by a standard deviation (a lone success in a group would "
                "get a huge advantage): set grpo.use_std_normalization to false, or the baseline to group_mean"
            )
        if self.dynamic_sampling_rounds and raw:
            raise ValueError(
                "grpo.dynamic_sampling_rounds drops groups of equal reward, which do teach under no_baseline: "
                "set it to 0, or take reinforce_with_baseline"
            )
        return self

    @model_validator(mode="after")
    def _loss_has_its_parts(self) -> Self:
        if not self.on_policy and self.loss_type in ON_POLICY_ONLY:
            raise ValueError(
                "several updates per rollout batch are off-policy: take grpo.loss_type grpo_clip or grpo_no_clip"
            )
        if self.loss_type not in CLIPPED and (self.clip_low or self.clip_high):
            raise ValueError(
                f"grpo.clip_low and grpo.clip_high bound a ratio, and grpo.loss_type {self.loss_type} clips none: "
                "leave them out, or take grpo_clip"
            )
        if self.loss_type == "gspo" and (self.clip_low is None or self.clip_high is None):
            raise ValueError(
                "grpo.loss_type gspo clips the ratio of whole sequences, which stays far closer to 1 than a token's: "
                "give grpo.clip_low and grpo.clip_high, 3e-4 and 4e-4 in its paper"
            )
        if self.loss_type == "gspo" and self.length_normalization != "masked_mean":
            raise ValueError("grpo.loss_type gspo weighs sequences alike: set grpo.length_normalization to masked_mean")
        if self.loss_type == "gspo" and self.importance_cap is not None:
            raise ValueError(
                "grpo.importance_cap weighs tokens, and grpo.loss_type gspo has one ratio per sequence: leave it out, "
                "or take grpo_clip"
            )
        return self

    @model_validator(mode="after")
    def _constant_is_used(self) -> Self:
        wanted = self.length_normalization == "masked_normalize"
        if wanted and self.normalize_constant is None:
            raise ValueError(
                "grpo.length_normalization masked_normalize needs grpo.normalize_constant, what each sum is divided "
                "by; constant divides by sampling.max_tokens"
            )
        if not wanted and self.normalize_constant is not None:
            raise ValueError(
                f"grpo.normalize_constant has no effect on grpo.length_normalization {self.length_normalization}: "
                "leave it out, or take masked_normalize"
            )
        return self

    def require_overlong_room(self, max_tokens: int) -> None:
        """Raise ValueError unless the overlong buffer lies within responses of `max_tokens`."""
        if self.overlong_buffer >= max_tokens:
            raise ValueError(
                f"grpo.overlong_buffer {self.overlong_buffer} leaves no length without penalty: "
                f"take less than sampling.max_tokens, which is {max_tokens}"
            )

    def key_settings(self) -> dict[str, Any]:
        """Only what the chosen loss uses counts, so that no two runs differ in name alone."""
        return {name: value for name, value in super().key_settings().items() if name not in self._without_effect()}

    def _without_effect(self) -> set[str]:
        """Fields that the others leave without effect on what is trained."""
        unused = set()
        raw = self.loss_type == "no_baseline"
        if raw:
            unused |= {"baseline", "use_std_normalization"}
        if raw or not self.use_std_normalization:
            unused.add("advantage_eps")
        if self.loss_type not in CLIPPED or self.on_policy:  # on-policy the ratio is 1, which no range leaves out
            unused |= {"cliprange", "clip_low", "clip_high"}
        elif self.clip_low and self.clip_high:
            unused.add("cliprange")
        if not self.overlong_buffer:
            unused.add("overlong_penalty")
        return unused

    @property
    def keeps_state(self) -> bool:
        """Whether the training state is kept after the last step."""
        if self.keep_state is None:
            return self.optimizer.schedule == "constant" and self.time_budget_hours is None
        return self.keep_state

    def _whole_groups(self) -> int:
        """The rollout batch nearest below that holds whole groups, or one group."""
        return max(self.rollout_batch_size // self.group_size, 1) * self.group_size

    @property
    def on_policy(self) -> bool:
        """One update per rollout batch, so that old and new policy are the same."""
        return self.epochs_per_rollout_batch == 1 and self.train_batch_size == self.rollout_batch_size

    @property
    def clip(self) -> tuple[float, float]:
        """(low, high): the ratio is clipped to [1 - low, 1 + high]."""
        return self.clip_low or self.cliprange, self.clip_high or self.cliprange
