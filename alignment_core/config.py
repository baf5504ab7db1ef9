"""Every setting of a study, typed; a sentence under each field. Imports no torch.

`StudyConfig` is what a preset file holds and what `--set` overrides; `alignment_core.stage_config` holds what
one stage receives of it.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alignment_core.verdicts import GradingMode

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]

Split = Literal["train", "dev", "test"]
RewardName = Literal["r1_zero", "question_only", "number", "countdown"]
Decoding = Literal["auto", "plain", "static", "graph"]
Variant = Literal["raw", "filtered", "distilled"]
LossType = Literal["no_baseline", "reinforce_with_baseline", "grpo_clip", "grpo_no_clip"]
LengthNormalization = Literal["masked_mean", "masked_normalize", "token_mean"]


class Config(BaseModel):
    """Base of all settings: frozen, unknown fields refused, field docstrings kept for forms."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def key_settings(self) -> dict[str, Any]:
        """The settings as they enter a stage key: JSON values, without what says only where a thing lies."""
        return self.model_dump(mode="json")


class ScratchModelConfig(Config):
    """A Qwen2-shaped model with its own tokenizer, pretrained from scratch on synthetic problems."""

    hidden_size: Positive = 128
    intermediate_size: Positive = 384
    num_hidden_layers: Positive = 3
    num_attention_heads: Positive = 4
    num_key_value_heads: Positive = 2
    initializer_range: Rate = 0.05
    """Standard deviation of the initial weights; 0.02 learns far slower at this size."""
    vocab_size: Positive = 512
    """Upper bound for the byte-pair tokenizer; it saturates below on so small a corpus."""
    max_position_embeddings: Positive = 512
    documents: Positive = 30_000
    """Documents of the pretraining corpus."""
    strict_format_share: Share = 0.08
    """Share of the tagged documents that end in the strict `</think> <answer> … </answer>` form."""
    tagged_share: Share = 0.43
    """Share of documents written in the `User: … Assistant: <think>` form; the rest are plain Q/A."""
    careful_share: Share = 0.75
    """Share of documents that reason carefully; the others slip once, or guess."""
    slip_share: Share = 0.10
    """Share of documents with one wrong step carried on; the remainder guesses."""
    learning_rate: Rate = 2e-3
    batch_size: Positive = 32


class ModelConfig(Config):
    """Which model a study starts from, and in which precision it is held and computed."""

    source: str = "scratch"
    """`scratch`, a local folder in Hugging Face layout, or a hub id."""
    revision: str | None = None
    """Hub revision; None means the branch head, and the commit found is recorded."""
    scratch: ScratchModelConfig | None = None
    """Shape and pretraining of a `scratch` model."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the forward and backward pass; master weights and moments are always float32."""

    @model_validator(mode="after")
    def _scratch_has_a_shape(self) -> Self:
        if (self.source == "scratch") != (self.scratch is not None):
            raise ValueError(
                "model.scratch is given exactly when model.source is 'scratch': with another source set it to null"
            )
        return self


class ArithmeticConfig(Config):
    """Synthetic word problems in GSM8K's raw format."""

    max_total: Positive = 50
    """No running total exceeds this."""
    step_shares: tuple[float, ...] = (0.25, 0.50, 0.25)
    """Shares of problems with 1, 2, 3 … steps."""
    train: Positive = 2048
    dev: Positive = 300
    test: Positive = 500
    wrong_trace_share: Share = 0.2
    """Share of training traces whose answer is wrong."""
    unformatted_trace_share: Share = 0.2
    """Share of training traces that miss the strict format."""


class DataConfig(Config):
    """Which problems a study works on and how they are split."""

    kind: Literal["arithmetic", "countdown", "gsm8k", "math", "jsonl"] = "arithmetic"
    train: str | None = None
    """Local file, or hub id, of the training problems."""
    test: str | None = None
    """Local file, or hub id, of the test problems; may equal `train` where a hub id holds both splits."""
    traces: str | None = None
    """Local file or hub id of prompt/response traces for SFT; None uses the problems' own solutions."""
    split: Literal["official", "resplit"] = "official"
    """`official` keeps the source's test set and cuts `dev_size` off train; `resplit` shuffles train+test by seed."""
    resplit_sizes: tuple[Positive, Positive, Positive] = (6_792, 1_000, 1_000)
    """train/dev/test sizes of `resplit`."""
    dev_size: NonNegative = 500
    """Problems held out of official train for tuning."""
    limit_train: Positive | None = None
    limit_test: Positive | None = None
    keep_calculator_marks: bool = False
    """Keep GSM8K's `<<12-2=10>>` marks in traces."""
    arithmetic: ArithmeticConfig | None = None
    countdown_size: Positive = 2000
    """Problems generated for `countdown`."""

    @model_validator(mode="after")
    def _kind_has_its_source(self) -> Self:
        if (self.kind == "arithmetic") != (self.arithmetic is not None):
            raise ValueError(
                "data.arithmetic is given exactly when data.kind is 'arithmetic': with another kind set it to null"
            )
        if self.kind in {"gsm8k", "math", "jsonl"} and self.train is None:
            raise ValueError(f"data.kind {self.kind!r} needs data.train: a local file or a hub id")
        return self


class SamplingConfig(Config):
    """How completions are drawn. Penalties, top-k and model-supplied defaults are off, always."""

    backend: Literal["transformers"] = "transformers"
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0 means greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 1024
    min_tokens: NonNegative = 0
    """No stop string or EOS ends a response before this many tokens."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ("</answer>",)
    batch_size: Positive = 256
    """Sequences decoded together (transformers backend)."""
    decoding: Decoding = "auto"
    """How the transformers backend decodes: auto takes CUDA graphs on a GPU where the model allows them, else plain;
    static is the way of graph without recording one. All give the same completions up to rounding."""


class EvaluationConfig(Config):
    """How a model is judged."""

    split: Split = "test"
    limit: Positive | None = None
    """First problems of the split; None means all."""
    samples_per_problem: Positive = 1
    reward: RewardName = "r1_zero"
    mode: GradingMode = "fast"
    """thorough also asks our own checks and math-verify (recall beyond the published fast verdict)."""


class OptimizerConfig(Config):
    """AdamW and its schedule."""

    learning_rate: Rate = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Rate = 1.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Course of the rate after warm-up; cosine and linear end at 0."""
    warmup_steps: NonNegative = 0


class SFTConfig(Config):
    """Supervised fine-tuning on prompt/response pairs; loss on response tokens only."""

    epochs: Positive = 3
    batch_size: Positive = 16
    """Examples per optimizer step."""
    micro_batch_tokens: Positive = 16_384
    """Upper bound of padded tokens in one forward pass; changes memory, not the gradient."""
    max_length: Positive = 2048
    """Longer prompt+response pairs are left out, and counted."""
    optimizer: OptimizerConfig = OptimizerConfig(schedule="cosine", learning_rate=2e-5)
    validate_every: Positive = 50
    """Optimizer steps between points of the validation curve (one more at the end)."""
    validation_problems: NonNegative = 128
    """Dev problems sampled at each point; 0 switches the curve off."""


class ExpertIterationConfig(Config):
    """Sample, keep what is right, fine-tune on it, and again."""

    n_ei_steps: Positive = 5
    questions_per_step: Positive = 1024
    """D_b: questions drawn per step."""
    group_size: Positive = 8
    """G: samples per question."""
    min_tokens: NonNegative = 4
    """Shortest response the sampler may end."""
    max_correct_per_question: Positive = 4
    """Cap of kept samples per question, so that easy ones do not crowd out the rest."""
    sft: SFTConfig = SFTConfig(epochs=2)
    starts: tuple[Literal["base", "sft"], ...] = ("base",)
    """`sft` starts from the study's `sft_start`."""


class GRPOConfig(Config):
    """The assignment's policy-gradient loop; names and defaults are its own."""

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
    micro_batch_tokens: Positive = 16_384
    """Upper bound of padded tokens in one forward pass; changes memory, not the gradient."""
    loss_type: LossType = "reinforce_with_baseline"
    use_std_normalization: bool = True
    length_normalization: LengthNormalization = "masked_mean"
    cliprange: Rate = 0.2
    """Clip of the ratio to 1 ± cliprange, for grpo_clip."""
    min_tokens: NonNegative = 4
    """Shortest response the sampler may end."""
    validate_every: Positive = 10
    validation_problems: NonNegative = 256
    rollouts_logged: NonNegative = 4
    """Rollouts kept in the record at each validation."""
    keep_state: bool = False
    """Publish the training state after the last step too, so that a run of more steps goes on from there: 12 bytes per
    parameter, 18.5 GB at 1.5B. Constant learning rate only; not in the key."""
    starts: tuple[Literal["base", "sft"], ...] = ("base",)
    """`sft` starts from the study's `sft_start`."""

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
        if self.keep_state and self.optimizer.schedule != "constant":
            raise ValueError(
                f"grpo.keep_state goes with a constant learning rate: every step of a {self.optimizer.schedule} "
                "schedule depends on their number. Set grpo.optimizer.schedule to constant, or keep_state to false"
            )
        if self.group_size == 1 and self.loss_type != "no_baseline":
            raise ValueError("grpo.group_size 1 gives every advantage 0; take no_baseline or a larger group")
        if not self.on_policy and self.loss_type in {"no_baseline", "reinforce_with_baseline"}:
            raise ValueError(
                "several updates per rollout batch are off-policy: take grpo.loss_type grpo_clip or grpo_no_clip"
            )
        return self

    def _whole_groups(self) -> int:
        """The rollout batch nearest below that holds whole groups, or one group."""
        return max(self.rollout_batch_size // self.group_size, 1) * self.group_size

    @property
    def on_policy(self) -> bool:
        """One update per rollout batch, so that old and new policy are the same."""
        return self.epochs_per_rollout_batch == 1 and self.train_batch_size == self.rollout_batch_size


class DistillationConfig(Config):
    """A teacher writes the traces: sample, grade, keep what is right."""

    teacher: str
    """A local folder in Hugging Face layout, or a hub id."""
    revision: str | None = None
    questions: Positive | None = None
    """Train problems put to the teacher; None means all."""
    samples_per_problem: Positive = 4
    max_correct_per_question: Positive = 1


class SweepConfig(Config):
    """The SFT sweep: sizes x variants of the trace set."""

    sizes: tuple[Positive | Literal["full"], ...] = (128, 256, 512, 1024, "full")
    """Nested subsets: each is the head of one seeded shuffle."""
    variants: tuple[Variant, ...] = ("raw", "filtered")
    """`raw` traces as they come, `filtered` those the grader accepts, `distilled` those of the study's teacher."""


class StudyConfig(Config):
    """One study: what `alignflow run PRESET` runs."""

    name: str
    """Also the MLflow experiment."""
    description: str = ""
    seed: int = 0
    """Seed of data, splits and the base model."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the training runs: each of SFT, Expert Iteration and GRPO is repeated for each."""
    model: ModelConfig
    data: DataConfig
    prompt: str = "reasoning"
    """Template: a shipped name (`reasoning`, `question_only`) or a file with `{question}`."""
    plain_prompt: str | None = None
    """Template for the base model's plain question-answer accuracy; None leaves that evaluation out."""
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sft: SFTConfig = SFTConfig()
    sweep: SweepConfig = SweepConfig()
    distillation: DistillationConfig | None = None
    """Where `distilled` traces come from."""
    sft_start: tuple[Positive | Literal["full"], Variant] = ("full", "filtered")
    """The sweep member that runs with `starts: [sft]` begin from."""
    expert_iteration: ExpertIterationConfig | None = ExpertIterationConfig()
    grpo: GRPOConfig | None = GRPOConfig()

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        wanted = [part.starts for part in (self.expert_iteration, self.grpo) if part is not None]
        size, variant = self.sft_start
        if any("sft" in starts for starts in wanted) and (
            size not in self.sweep.sizes or variant not in self.sweep.variants
        ):
            raise ValueError(f"sft_start {self.sft_start} is not a member of the sweep")
        if "distilled" in self.sweep.variants and self.distillation is None:
            raise ValueError(
                "sweep.variants has 'distilled': give distillation.teacher, the model that writes the traces"
            )
        if (self.data.kind == "countdown") != (self.evaluation.reward == "countdown"):
            raise ValueError(
                "data.kind 'countdown' goes with evaluation.reward 'countdown', and only with it: the other rewards "
                "accept any expression worth the target, whichever numbers it uses"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: give at least one, each once")
        if not self.sweep.sizes or not self.sweep.variants:
            raise ValueError("sweep.sizes and sweep.variants must each have a member")
        return self
