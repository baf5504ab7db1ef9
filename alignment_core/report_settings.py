"""Which settings the members of an experiment were run with, as a page writes them.

A member's own settings come first, then its experiment's, then those of the winners it carries, then the study's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment_core.report_answers import ExperimentAnswer, MemberAnswer
from alignment_core.report_data import ReportData
from alignment_core.report_text import setting_told, setting_value

Answers = list[ExperimentAnswer]
RATE, LOSS, EPOCHS = "grpo.optimizer.learning_rate", "grpo.loss_type", "grpo.epochs_per_rollout_batch"
BATCH, ROLLOUTS, STEPS = "grpo.train_batch_size", "grpo.rollout_batch_size", "grpo.n_grpo_steps"


def member_value(data: ReportData, answer: ExperimentAnswer, member: MemberAnswer, name: str) -> str | None:
    """A setting of one member; None where nothing tells it."""
    if name in member.varied:
        return member.varied[name]
    for layer in (answer.outline.settings, *_carried(data, answer)):
        if name in layer:
            return setting_value(layer[name])
    return setting_told(data.settings[name]) if name in data.settings else None


def _carried(data: ReportData, answer: ExperimentAnswer) -> Iterator[Mapping[str, Any]]:
    """Settings of the winners that an experiment carries, the last one first, which wins."""
    outlines = {outline.name: outline for outline in data.experiments}
    for name in reversed(answer.outline.carry):
        winner = data.choices[name].winner if name in data.choices else None
        if name in outlines:
            yield from (one.varied for one in outlines[name].members if one.group == winner)
            yield outlines[name].settings


def values_of(data: ReportData, answer: ExperimentAnswer, name: str) -> list[str]:
    """Distinct values of a setting over an experiment's evaluated members, the study's own where none is given."""
    found = [member_value(data, answer, member, name) for member in answer.done]
    return list(dict.fromkeys(value for value in found if value is not None))


def all_values(data: ReportData, answers: Sequence[ExperimentAnswer], name: str) -> list[str]:
    """The same over several experiments."""
    return list(dict.fromkeys(value for answer in answers for value in values_of(data, answer, name)))


def updates_of(data: ReportData, answer: ExperimentAnswer) -> list[int]:
    """Distinct numbers of optimizer updates per rollout batch, epochs * rollouts / train batch, where they are told."""
    found = []
    for member in answer.done:
        told = [member_value(data, answer, member, name) for name in (EPOCHS, ROLLOUTS, BATCH)]
        if all(value is not None and value.isdigit() for value in told):
            epochs, rollouts, batch = (int(value or 0) for value in told)
            found.append(epochs * rollouts // batch)
    return sorted(set(found))
