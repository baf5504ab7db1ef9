"""What a study cost: seconds and tokens by experiment and kind of stage, and what earlier runs had computed."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from alignment_core.report_answers import ExperimentAnswer
from alignment_core.report_data import ReportData, StageRow

SHARED = "shared by all"
_KINDS = {
    "training": {"pretrain", "sft", "grpo", "dpo"},
    "sampling": {"sample"},
    "grading": {"grade"},
}


class CostRow(NamedTuple):
    """One experiment's cost, or that of what all share."""

    name: str
    stages: int
    seconds: dict[str, float]
    """By kind of work: training, sampling, grading, other."""
    trained: float | None
    """Response tokens trained on; None where nothing tells."""
    sampled: float | None
    """Response tokens sampled, in training and in evaluations; validation apart."""

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())


class KindRow(NamedTuple):
    """One kind of stage."""

    stage: str
    stages: int
    seconds: float
    longest: StageRow


class OriginRow(NamedTuple):
    """One run of a study that computed stages of this page."""

    study: str
    run: str
    started: float
    hosts: list[str]
    stages: int
    seconds: float
    resumed: int


WORKS = (*_KINDS, "other")


def costs(data: ReportData, answers: Sequence[ExperimentAnswer]) -> list[CostRow]:
    """A row for what is shared, then one per experiment with stages; a stage counts where it was first needed."""
    by_owner: dict[str, list[StageRow]] = {}
    for stage in data.stages:
        by_owner.setdefault(stage.owner, []).append(stage)
    order = dict.fromkeys(["", *(answer.outline.name for answer in answers), *by_owner])
    return [_row(name, by_owner[name]) for name in order if by_owner.get(name)]


def _row(name: str, stages: Sequence[StageRow]) -> CostRow:
    seconds = dict.fromkeys(WORKS, 0.0)
    for stage in stages:
        seconds[_work(stage.stage)] += stage.seconds or 0.0
    trained = _sum(stage.trained_tokens for stage in stages)
    sampled = _sum(stage.sampled_tokens for stage in stages)
    return CostRow(name or SHARED, len(stages), seconds, trained, sampled)


def _sum(counts: Iterable[float | None]) -> float | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _work(stage: str) -> str:
    return next((work for work, kinds in _KINDS.items() if stage in kinds), "other")


def by_kind(stages: Sequence[StageRow]) -> list[KindRow]:
    """Kinds of stages, the longest first."""
    kinds: dict[str, list[StageRow]] = {}
    for stage in stages:
        kinds.setdefault(stage.stage, []).append(stage)
    rows = [
        KindRow(kind, len(own), sum(one.seconds or 0.0 for one in own), max(own, key=lambda one: one.seconds or 0.0))
        for kind, own in kinds.items()
    ]
    return sorted(rows, key=lambda row: (-row.seconds, row.stage))


def origins(stages: Sequence[StageRow]) -> list[OriginRow]:
    """The study runs that computed the stages, newest first: what an earlier one computed was taken over from it."""
    known: dict[str, list[StageRow]] = {}
    for stage in stages:
        if stage.run and stage.started is not None:
            known.setdefault(stage.run, []).append(stage)
    rows = [
        OriginRow(
            study=own[0].study,
            run=run,
            started=min(one.started or 0.0 for one in own),
            hosts=sorted({one.host for one in own if one.host}),
            stages=len(own),
            seconds=sum(one.seconds or 0.0 for one in own),
            resumed=sum(one.resumed_from is not None for one in own),
        )
        for run, own in known.items()
    ]
    return sorted(rows, key=lambda row: -row.started)
