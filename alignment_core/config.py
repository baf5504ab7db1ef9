"""The parts of a study's settings, typed; a sentence under each field. Imports no torch.

`alignment_core.study_config` puts them together, `alignment_core.training_config` has those of the training loops, and
`alignment_core.stage_config` what one stage receives of them.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from alignment_core.config_base import Config, NonNegative, Positive, Rate, Share
from alignment_core.training_config import SFTConfig
from alignment_core.verdicts import GradingMode

Split = Literal["train", "dev", "test"]
RewardName = Literal["r1_zero", "question_only", "number", "countdown"]
Decoding = Literal["auto", "plain", "static", "graph"]
Variant = Literal["raw", "filtered", "distilled"]


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
    processes: Positive = 1
    """Processes that train together (data parallel), one GPU each; each holds a whole model, and all share a batch."""

    @model_validator(mode="after")
    def _scratch_has_a_shape(self) -> Self:
        if (self.source == "scratch") != (self.scratch is not None):
            raise ValueError(
                "model.source 'scratch' needs model.scratch, the model's shape: give it, e.g. {}"
                if self.source == "scratch"
                else "model.scratch is for model.source 'scratch' alone: with another source set it to null"
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
                "data.kind 'arithmetic' needs data.arithmetic: give it, e.g. {}"
                if self.kind == "arithmetic"
                else "data.arithmetic is for data.kind 'arithmetic' alone: with another kind set it to null"
            )
        generated = self.kind in {"arithmetic", "countdown"}
        named = [name for name in ("train", "test", "traces") if getattr(self, name) is not None]
        if generated and named:
            raise ValueError(
                f"data.{named[0]} would not be read: data.kind {self.kind!r} generates its problems. Set data.kind to "
                "gsm8k, math or jsonl, and data.arithmetic to null"
            )
        if not generated and self.train is None:
            raise ValueError(f"data.kind {self.kind!r} needs data.train: a local file or a hub id")
        return self


class VllmConfig(Config):
    """How vllm's engine is placed and run. Where it lies and how much memory it takes change no result."""

    gpu: NonNegative | None = None
    """Index of the GPU the engine takes; None shares the trainer's."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of that GPU's memory for the engine, weights and key/value cache together; on a CPU, of main memory."""
    kv_cache_gb: Rate | None = None
    """Size of the key/value cache; None means what `gpu_memory_utilization` leaves."""
    enforce_eager: bool = False
    """Neither compile nor record CUDA graphs: starts faster, decodes slower."""
    sync_tolerance: Rate | None = None
    """Largest mean difference of log-probs (nats per token) between engine and trainer after a weight sync; None means
    0.001 in float32, and in bfloat16 six times the trainer's own rounding."""

    def key_settings(self) -> dict[str, Any]:
        """What can change a completion."""
        return {"enforce_eager": self.enforce_eager}


class SamplingConfig(Config):
    """How completions are drawn. Penalties, top-k and model-supplied defaults are off, always."""

    ROUNDING = frozenset({"batch_size"})

    backend: Literal["transformers", "vllm"] = "transformers"
    """vllm needs its package; its draws differ from those of transformers, from the same seeds."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0 means greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 1024
    min_tokens: NonNegative = 0
    """The first so many tokens end no response: no EOS among them, and no stop string they complete counts."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ("</answer>",)
    batch_size: Positive = 256
    """Sequences decoded together."""
    decoding: Decoding = "auto"
    """How the transformers backend decodes: auto takes CUDA graphs on a GPU where the model allows them, else plain;
    static is the way of graph without recording one. All give the same completions up to rounding."""
    vllm: VllmConfig = VllmConfig()
    """For the vllm backend."""

    @model_validator(mode="after")
    def _backend_knows_the_temperature(self) -> Self:
        if self.backend == "vllm" and not (self.temperature == 0 or 0.01 <= self.temperature <= 2):
            raise ValueError(
                f"sampling.temperature {self.temperature}: vllm samples greedily (0) or from 0.01 to 2, and would "
                "replace a smaller one in silence. Take one of those, or sampling.backend transformers"
            )
        return self

    def key_settings(self) -> dict[str, Any]:
        """Only what the chosen backend uses counts."""
        settings = super().key_settings()
        del settings["decoding" if self.backend == "vllm" else "vllm"]
        return settings


class FewShotConfig(Config):
    """Worked examples before each question of an evaluation."""

    template: str = "few_shot"
    """A shipped name (`few_shot`, `few_shot_boxed`) or a file with `{examples}` and then `{question}`."""
    shots: Positive = 4
    """Worked examples."""
    seed: int = 0
    """Draws them from the train split."""
    source: str | None = None
    """File of problems with solutions whose first ones are shown instead, in any form that data files have."""


class EvaluationConfig(Config):
    """How a model is judged."""

    split: Split = "test"
    subset: Literal["math500"] | None = None
    """Only the problems of MATH-500, which MATH's rows mark as `in_math500`; None means all."""
    few_shot: FewShotConfig | None = None
    """Ask through a few-shot prompt instead of the study's own; None means without examples."""
    limit: Positive | None = None
    """First problems of the split; None means all."""
    samples_per_problem: Positive = 1
    reward: RewardName = "r1_zero"
    mode: GradingMode = "fast"
    """thorough also asks our own checks and math-verify (recall beyond the published fast verdict)."""


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


class DistillationConfig(Config):
    """A teacher writes the traces: sample, grade, keep what is right."""

    teacher: str | None = None
    """A local folder in Hugging Face layout, or a hub id; None: experiments name their own teacher."""
    revision: str | None = None
    questions: Positive | None = None
    """Train problems put to the teacher; None means all."""
    samples_per_problem: Positive = 4
    max_correct_per_question: Positive = 1


class ExamplesConfig(Config):
    """Which traces SFT imitates."""

    variant: Variant = "filtered"
    """`raw` traces as they come, `filtered` those the grader accepts, `distilled` those of the study's teacher."""
    size: Positive | Literal["full"] = "full"
    """The first so many of one seeded shuffle, so that a smaller set is contained in every larger one."""


class BudgetConfig(Config):
    """Wall-clock time of one training run and its evaluation, as a leaderboard grants it."""

    hours: Rate
    """Training ends where another step would leave too little for the evaluation, as measured on the way."""
