"""Everything a study's page shows, as plain data: what the report stage collects and the page is a function of."""

from typing import Any, Literal

from pydantic import Field

from alignment_core.analysis import Analysis
from alignment_core.choosing import Choice
from alignment_core.comparisons import Test, Verdict
from alignment_core.records import Record
from alignment_core.stage_config import Comparison, ExperimentOutline

Row = dict[str, Any]


class StageRow(Record):
    """One stage that the page draws on."""

    label: str
    stage: str
    key: str
    seconds: float | None = None
    """How long it took when it was computed; None if unknown."""
    accepted: str = ""
    """Why it stands although its code changed since; empty if it is of this code."""
    owner: str = ""
    """The experiment whose members it was first needed for; empty for what all share."""
    started: float | None = None
    """Unix time, seconds."""
    host: str = ""
    study: str = ""
    """The study that computed it."""
    run: str = ""
    """Id of that study's run; empty where it is not known."""
    trained_tokens: float | None = None
    """Response tokens trained on; None for a stage that does not train."""
    sampled_tokens: float | None = None
    """Response tokens sampled, validation apart; None for a stage that does not sample."""
    resumed_from: int | None = None
    """Step from which it went on after an interruption; None if there was none."""


class KeyLink(Record):
    """One stage that a number stands on."""

    what: str
    stage: str
    key: str


class Prompt(Record):
    """One template that problems were asked through."""

    label: str
    """Of the stage that used it."""
    name: str
    """As the settings name it; empty if they do not."""
    text: str
    sha256: str


class Interval(Record):
    """A 95 % interval of a mean accuracy, and what it leaves out, in words."""

    low: float
    high: float
    note: str = ""


class SettingVerdict(Record):
    """Two settings against each other, over the seeds that both have."""

    name: str
    against: str
    difference: float
    low: float
    high: float
    p_value: float | None = None
    p_holm: float | None
    """None for an exploratory one, whose p-value is not corrected."""
    verdict: Verdict
    test: Test | None = None
    seeds: list[int] = Field(default_factory=list)
    note: str = ""


class AtKRow(Record):
    """What k samples of a problem give, in the mean over problems."""

    evaluation: str
    kind: Literal["pass", "maj"]
    k: int
    value: float
    low: float
    high: float


class PublishedRow(Record):
    """One of our evaluations beside a number that others published."""

    evaluation: str
    source: str
    method: str
    accuracy: float
    """Theirs, in per cent."""
    evaluation_set: str
    model: str = ""
    comparable: bool
    differs: list[str] = Field(default_factory=list)
    """What differs or is not known; empty if comparable."""
    note: str = ""


class ReportData(Record):
    """Everything a page shows."""

    title: str
    question: str = ""
    description: str = ""
    analysis: Analysis
    evaluations: list[Comparison] = Field(default_factory=list)
    """The analysis's evaluations as the study asked for them: whose members they are, and what those vary."""
    experiments: list[ExperimentOutline] = Field(default_factory=list)
    """What the study set out to run, in its order; what has no evaluation is shown as missing."""
    failures: dict[str, str] = Field(default_factory=dict)
    """What failed, by member or experiment, and why."""
    choices: dict[str, Choice] = Field(default_factory=dict)
    """By experiment."""
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """Of the mean accuracy of a setting, by its name without the seed."""
    setting_comparisons: list[SettingVerdict] = Field(default_factory=list)
    at_k: list[AtKRow] = Field(default_factory=list)
    published: list[PublishedRow] = Field(default_factory=list)
    leakage: Row | None = None
    """What the search for test problems among the training problems found."""
    filter_report: Row | None = None
    """How many traces the filter kept, and why others were dropped."""
    curves: dict[str, list[Row]] = Field(default_factory=dict)
    """Run name -> points {"step": int, "metrics": {name: number}}."""
    rollouts: dict[str, list[Row]] = Field(default_factory=dict)
    """Run name -> sample rows, with a `step` where it is known."""
    validations: dict[str, list[Row]] = Field(default_factory=dict)
    """The same, of dev problems."""
    examples: dict[str, list[Row]] = Field(default_factory=dict)
    """Evaluation name -> rows of `evaluation.failing_examples`."""
    solved: dict[str, list[Row]] = Field(default_factory=dict)
    """Evaluation name -> right responses."""
    stages: list[StageRow] = Field(default_factory=list)
    stands_on: dict[str, list[KeyLink]] = Field(default_factory=dict)
    """Evaluation or run name -> the stages its numbers stand on, the nearest first."""
    prompts: list[Prompt] = Field(default_factory=list)
    """The study's own first."""
    sizes: dict[str, int] = Field(default_factory=dict)
    """Rows of each split."""
    versions: dict[str, str] = Field(default_factory=dict)
    """What the stages were computed with: library or `threads`, `host` … -> version."""
    settings: dict[str, str] = Field(default_factory=dict)
    """Every setting of the study by dotted name."""
    command: str = ""
    """What to type to run the study again."""
