"""One study: what a preset file holds and `--set` overrides. Imports no torch.

The sections are the settings that every experiment shares; an experiment is a method, where it starts, and which of the
settings it varies. `alignment_core.experiments` makes its members.
"""

import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from alignment_core.config import (
    BudgetConfig,
    DataConfig,
    DistillationConfig,
    EvaluationConfig,
    ExamplesConfig,
    ExpertIterationConfig,
    ModelConfig,
    SamplingConfig,
)
from alignment_core.config_base import Config
from alignment_core.training_config import DPOConfig, GRPOConfig, PairsConfig, SFTConfig

Method = Literal["evaluate", "sft", "expert_iteration", "grpo", "dpo"]
NAME = re.compile(r"[A-Za-z0-9][\w.=+-]*(?:/[\w.=+-]+)*", re.ASCII)
BASE = "base"
"""The start that is no experiment: the study's base model."""


class ChoiceConfig(Config):
    """The rule by which one member of an experiment is taken on, judged on dev problems, never on the test set."""

    rule: Literal["best", "significant"] = "best"
    """`best`: the highest mean accuracy over seeds, of equals the first listed. `significant`: the first listed, unless
    the 95 % interval of another's paired difference to it lies above 0; then the best of those."""


class ExperimentConfig(Config):
    """One question put to a method: where it starts, and what its members vary."""

    name: str
    """Begins the name of every member, e.g. `grpo/lr`."""
    method: Method
    """`evaluate` trains nothing: it judges its start under the settings of each member."""
    start: str = BASE
    """`base`, an earlier member without its seed (`sft/128/filtered`), or an earlier experiment with a choice."""
    teacher: str | None = None
    """An earlier member or experiment, as for `start`, whose model writes the `distilled` traces; None means
    `distillation.teacher`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the study, by dotted name, that all members share."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Dotted name -> values: every combination is a member, named by its values in this order."""
    members: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name -> settings: members that no grid describes. With a grid too, every pair of both is one."""
    against: tuple[str, ...] = ()
    """Members of earlier experiments (without seed), or such experiments with a choice, that its members are compared
    with, beside their start and the first listed."""
    seeds: tuple[int, ...] | None = None
    """Seeds of its training runs; None means the study's."""
    choice: ChoiceConfig | None = None
    """How a winner is chosen, for experiments that start from it or carry it."""
    carry: tuple[str, ...] = ()
    """Earlier experiments whose winners' settings all members begin from."""

    @property
    def waits_for(self) -> tuple[str, ...]:
        """What has to be trained, or chosen, before: `base`, members and experiments."""
        return (self.start, *filter(None, [self.teacher]), *self.carry)

    @model_validator(mode="after")
    def _names_and_values(self) -> Self:
        for name in (self.name, *self.members):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name an experiment: take letters, digits and . _ = + - / between")
        for name, values in self.grid.items():
            if not values:
                raise ValueError(
                    f"experiment {self.name!r}: its grid has no value for {name}: give one, or leave it out"
                )
        return self


class StudyConfig(Config):
    """One study: what `alignflow run PRESET` runs."""

    name: str
    """Also the MLflow experiment."""
    description: str = ""
    question: str = ""
    """What the study is to answer, for the report."""
    seed: int = 0
    """Seed of data, splits and the base model."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the training runs: every member of an experiment is repeated for each."""
    model: ModelConfig
    data: DataConfig
    prompt: str = "reasoning"
    """Template: a shipped name (`reasoning`, `question_only`) or a file with `{question}`."""
    plain_prompt: str | None = None
    """Template for the base model's plain question-answer accuracy; None leaves that evaluation out."""
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    examples: ExamplesConfig = ExamplesConfig()
    sft: SFTConfig = SFTConfig()
    distillation: DistillationConfig = DistillationConfig()
    """Where `distilled` traces come from."""
    expert_iteration: ExpertIterationConfig = ExpertIterationConfig()
    grpo: GRPOConfig = GRPOConfig()
    dpo: DPOConfig = DPOConfig()
    pairs: PairsConfig = PairsConfig()
    budget: BudgetConfig | None = None
    """Limit of each GRPO run with its evaluation; None: as many steps as `grpo.n_grpo_steps` says."""
    experiments: tuple[ExperimentConfig, ...] = ()
    """What is trained and compared; the base model is evaluated in any case."""
    only: tuple[str, ...] | None = None
    """Names of the experiments to run, or how they begin (`grpo` for all of `grpo/…`), with what they start from; None
    runs all."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        self.grpo.require_overlong_room(self.sampling.max_tokens)
        if self.budget is not None:
            GRPOConfig.model_validate({**self.grpo.model_dump(), "time_budget_hours": self.budget.hours})
        if self.model.processes > 1 and self.sampling.backend == "vllm":
            raise ValueError(
                "model.processes above 1 needs sampling.backend transformers: vllm's engine serves one process"
            )
        if (self.data.kind == "countdown") != (self.evaluation.reward == "countdown"):
            raise ValueError(
                "data.kind 'countdown' goes with evaluation.reward 'countdown', and only with it: the other rewards "
                "accept any expression worth the target, whichever numbers it uses"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: give at least one, each once")
        return self
