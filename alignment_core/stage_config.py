"""What one stage receives and what enters its key: only fields that can change its result.

Where a thing lies, who logs it and how often it is retried stay out, on purpose.
"""

from typing import Any, Literal

from pydantic import Field

from alignment_core.config import (
    ArithmeticConfig,
    DataConfig,
    RewardName,
    SamplingConfig,
    ScratchModelConfig,
    Split,
    Variant,
)
from alignment_core.config_base import Config, Positive
from alignment_core.training_config import DPOConfig, GRPOConfig, SFTConfig
from alignment_core.verdicts import GradingMode


class PrepareStage(Config):
    """Problems in, splits with prompts and traces out."""

    data: DataConfig
    template: str
    """Text of the prompt template."""
    seed: int
    content: dict[str, str] = Field(default_factory=dict)
    """sha256 of each local source, by field of `data`; filled in by the task, so that an edited file is felt."""

    def key_settings(self) -> dict[str, Any]:
        """A local source counts by its content, not by where it lies."""
        settings = super().key_settings()
        for name in self.content:
            del settings["data"][name]
        return settings


class PretrainStage(Config):
    """A tiny model from scratch."""

    model: ScratchModelConfig
    arithmetic: ArithmeticConfig
    template: str
    plain_template: str
    seed: int


class ImportModelStage(Config):
    """A pretrained checkpoint, by reference: its content identity, not a copy."""

    source: str
    revision: str | None = None
    content: str | None = None
    """Digest of a local folder (`tasks.models.folder_identity`), filled in by the task; None for a hub id.

    The folder's place is in the key as well, since the artifact points to it; the artifact's digest has the content
    alone, so that a folder that was moved is imported again and nothing after it runs again.
    """


class FewShotStage(Config):
    """Worked examples for a few-shot prompt."""

    shots: Positive
    seed: int
    """Draws them from the train split."""
    split: Split
    """The split that is asked: none of its questions becomes an example."""
    reward: RewardName = "r1_zero"
    """How an example ends: in tags, a box or a number."""
    source: str | None = None
    """File of problems with solutions whose first ones are shown; None draws from the train split."""
    content: str | None = None
    """sha256 of that file, filled in by the task, so that an edited file is felt."""

    def key_settings(self) -> dict[str, Any]:
        """A file counts by its content, not by where it lies; it is not drawn from."""
        settings = super().key_settings()
        if self.content is not None:
            del settings["source"], settings["seed"]
        return settings


class EvaluationSize(Config):
    """How much is asked."""

    split: Split
    subset: Literal["math500"] | None = None
    """Only the problems that their source marks as of MATH-500."""
    limit: Positive | None = None
    """How many problems; None means all."""
    samples_per_problem: Positive = 1


class SampleStage(EvaluationSize):
    """Completions for problems of one split."""

    sampling: SamplingConfig
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    draw_seed: int | None = None
    """Draw `limit` problems by this seed instead of taking the first ones."""
    template: str | None = None
    """Ask through this template instead of the problems' own prompts; one with `{examples}` takes them from the input
    `examples`."""
    keep_log_probs: bool = False
    seed: int


class GradeStage(Config):
    """Verdicts and the evaluation report over completions."""

    reward: RewardName = "r1_zero"
    mode: GradingMode = "fast"
    split: Split


class FilterStage(Config):
    """Traces whose answer the grader accepts."""

    reward: RewardName = "r1_zero"


class SelectStage(Config):
    """Correct completions as the next SFT set."""

    max_correct_per_question: Positive
    as_text: bool = False
    """Keep responses as text, for a student with another tokenizer than the sampled model's."""
    seed: int


class PairsStage(Config):
    """Preference pairs out of graded samples."""

    max_per_problem: Positive
    rejected: Literal["any", "formatted"] = "any"
    """Which wrong samples may be rejected: any, or only formatted ones, so that a pair is about the answer alone."""
    seed: int


class ImportPairsStage(Config):
    """Preference pairs from a file or a hub id."""

    source: str
    content: str | None = None
    """sha256 of a local source, filled in by the task, so that an edited file is felt."""
    template: str
    """Text of the study's prompt template."""
    render_prompts: bool = False
    """Put prompts of no known form into the template; without it they are asked as they are."""

    def key_settings(self) -> dict[str, Any]:
        """A local source counts by its content, not by where it lies."""
        settings = super().key_settings()
        if self.content is not None:
            del settings["source"]
        return settings


class SFTStage(Config):
    """One supervised run."""

    ROUNDING = frozenset({"processes"})

    sft: SFTConfig
    sampling: SamplingConfig
    """For the validation curve."""
    reward: RewardName = "r1_zero"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    size: Positive | None = None
    """Take the first `size` traces of a shuffle by `subset_seed`; None means all."""
    subset_seed: int = 0
    processes: Positive = 1
    """Processes that train together."""
    seed: int


class DPOStage(Config):
    """One run of direct preference optimization."""

    ROUNDING = frozenset({"processes"})

    dpo: DPOConfig
    sampling: SamplingConfig
    """For the validation curve, and the stop strings that end a response."""
    reward: RewardName = "r1_zero"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    processes: Positive = 1
    """Processes that train together."""
    seed: int


class GRPOStage(Config):
    """One policy-gradient run."""

    ROUNDING = frozenset({"processes"})

    grpo: GRPOConfig
    ahead: EvaluationSize | None = None
    """The evaluation for which `grpo.time_budget_hours` leaves room."""
    sampling: SamplingConfig
    reward: RewardName = "r1_zero"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    processes: Positive = 1
    """Processes that train together."""
    seed: int


class Comparison(Config):
    """One labelled evaluation in an analysis."""

    name: str
    """Unique within the study, e.g. `sft/512/raw/seed0`."""
    method: Literal["zero-shot", "plain", "sft", "ei", "grpo", "dpo"]
    start: str | None = None
    """Name of the evaluation it is compared with (its own starting point)."""
    seed: int | None = None
    size: int | None = None
    """SFT examples, for the accuracy-vs-size figure."""
    variant: Variant | None = None
    step: int | None = None
    """Expert Iteration round, for the curve."""
    experiment: str | None = None
    """The experiment it is a member of; None for the baselines."""
    varied: dict[str, Any] = Field(default_factory=dict)
    """The settings in which it differs from the other members, by dotted name."""


class ChooseStage(Config):
    """The winner among the members of an experiment."""

    candidates: tuple[str, ...]
    """Groups in the order listed; each input is GROUP/seedN, a grade of dev problems."""
    rule: Literal["best", "significant"]


class Contrast(Config):
    """Two settings to be compared over their seeds, by evaluation name or by name without the seed."""

    name: str
    against: str


class AnalyzeStage(Config):
    """Statistics over the study's evaluations."""

    evaluations: tuple[Comparison, ...]
    contrasts: tuple[Contrast, ...] = ()
    """Settings compared beside each run's start and the baseline: the two sides of an ablation."""


class AcceptedStage(Config):
    """A stage that was kept although its code changed, and why (`alignment_core.acceptance`)."""

    label: str
    stage: str
    key: str
    """Of the code it was computed by."""
    seconds: float
    reason: str


class MemberOutline(Config):
    """One combination of settings of an experiment."""

    group: str
    """Its name without a seed."""
    varied: dict[str, Any] = Field(default_factory=dict)


class ExperimentOutline(Config):
    """What an experiment set out to do, so that a page can say what is missing."""

    name: str
    method: str
    start: str = "base"
    teacher: str | None = None
    """The member or experiment whose model wrote the traces, if one of the study did."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What all its members share, by dotted name."""
    carry: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    """Members of other experiments, without seed, that its own are compared with."""
    rule: str | None = None
    """How a winner is chosen, if one is."""
    members: tuple[MemberOutline, ...] = ()
    seeds: tuple[int, ...] = ()
    asked: bool = True
    """Whether it was to run this time; the study's `only` may leave it out."""


class ReportStage(Config):
    """The page."""

    OUTSIDE_KEY = frozenset({"command", "code"})

    title: str
    question: str = ""
    description: str
    evaluations: tuple[Comparison, ...]
    experiments: tuple[ExperimentOutline, ...] = ()
    failures: dict[str, str] = Field(default_factory=dict)
    """What failed, by member or experiment, and why."""
    prompt: str = ""
    """Name of the study's template; its text is in the prepare artifact."""
    command: str = ""
    """What to type to run the study again: several commands ask for the same study."""
    code: dict[str, str] = Field(default_factory=dict)
    """Where the code came from, for the page, e.g. {"git": "3fa8c1d2"}."""
    runs: tuple[str, ...] = ()
    """Names of the training runs whose curves are shown; each is an input artifact of that name."""
    settings: dict[str, str] = Field(default_factory=dict)
    """Every setting of the study by dotted name, for the page."""
    keys: dict[str, str] = Field(default_factory=dict)
    """Stage key of each input: the page shows curves and costs, which are not in the digests of the inputs."""
    accepted: tuple[AcceptedStage, ...] = ()
    """Stages of the study, shown on the page or not, that stand although their code changed."""
