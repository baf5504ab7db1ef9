"""What a page says of a study beside its numbers: what it set out to run, and how to run it again."""

import json
import shlex
from pathlib import Path

from alignment_core.experiments import selected, variations
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
    """The command that asks for the whole study, a preset file by its name alone; empty in a plan."""
    request = {} if workspace.journal is None else workspace.journal.began.request
    if "preset" not in request:
        return ""
    preset = str(request["preset"])
    words = ["alignflow", "run", Path(preset).name if Path(preset).is_absolute() else preset]
    for name, value in (request.get("overrides") or {}).items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def code_origin(workspace: Workspace) -> dict[str, str]:
    """The commit of the code, where it is known."""
    tags = {} if workspace.journal is None else workspace.journal.began.tags
    commit = tags.get("alignflow.git_sha", "")
    return {"git": commit} if commit else {}
