"""What a page says of a study beside its numbers: what it set out to run, and how to run it again."""

import os
from pathlib import Path

from alignment_core.experiments import selected, variations
from alignment_core.journal import command_line
from alignment_core.stage_config import ExperimentOutline, MemberOutline
from alignment_core.study_config import StudyConfig
from tasks.workspace import Workspace


def outlines(config: StudyConfig) -> tuple[ExperimentOutline, ...]:
    """Every experiment of a study with its members, those that `only` leaves out included."""
    asked = {experiment.name for experiment in selected(config)}
    return tuple(
        ExperimentOutline(
            name=experiment.name,
            method=experiment.method,
            start=experiment.start,
            teacher=experiment.teacher,
            settings=experiment.settings,
            carry=experiment.carry,
            against=experiment.against,
            rule=None if experiment.choice is None else experiment.choice.rule,
            members=tuple(MemberOutline(group=one.group, varied=one.varied) for one in variations(experiment)),
            seeds=config.seeds if experiment.seeds is None else experiment.seeds,
            asked=experiment.name in asked,
        )
        for experiment in config.experiments
    )


def run_again(workspace: Workspace) -> str:
    """The command that asks for the whole study, to be typed where this one was; empty in a plan.

    It is outside the report's key: a page in the store keeps the words of the run that wrote it.
    """
    request = {} if workspace.journal is None else workspace.journal.began.request
    return command_line("study", _from_here(str(request["preset"])), request) if "preset" in request else ""


def _from_here(preset: str) -> str:
    """A preset file by its way from the current folder, which is how people type it: a page travels."""
    path = Path(preset)
    if not path.is_absolute():
        return preset
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else os.path.relpath(path, here)


def code_origin(workspace: Workspace) -> dict[str, str]:
    """The commit of the code, where it is known."""
    tags = {} if workspace.journal is None else workspace.journal.began.tags
    commit = tags.get("alignflow.git_sha", "")
    return {"git": commit} if commit else {}
