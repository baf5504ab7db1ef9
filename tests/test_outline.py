"""What a page says of a study beside its numbers: pytest tests/test_outline.py"""

import shlex
from typing import Any

import pytest

from flows.settings import load_config
from tasks.outline import code_origin, outlines, run_again
from tasks.workspace import Workspace, planning_workspace


class Journal:
    """What is asked of a journal."""

    def __init__(self, request: dict[str, Any], tags: dict[str, str]) -> None:
        self.began = self
        self.request, self.tags = request, tags


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return planning_workspace(str(tmp_path_factory.mktemp("root")))


def test_every_experiment_is_outlined_those_left_out_too() -> None:
    config = load_config("tiny/grpo-off-policy", {"only": ["grpo/broad"], "seeds": [0, 1]})
    broad, on_policy, winner, _expert_iteration = outlines(config)
    assert (broad.name, broad.method, broad.rule, broad.seeds, broad.asked) == (
        "grpo/broad",
        "grpo",
        "best",
        (0, 1),
        True,
    )
    assert len(broad.members) == 6
    assert broad.members[0].group == "grpo/broad/1/256"
    assert (winner.carry, winner.rule, winner.asked, on_policy.asked) == (("grpo/broad",), None, False, False)
    assert winner.against == ("grpo/focused/on-policy",)


def test_the_command_asks_for_the_same_study_again(workspace: Workspace) -> None:
    overrides = {"seeds": [0, 1], "name": "it's", "budget.hours": 4}
    request = {"flow": "report", "preset": "tiny/prompt", "overrides": overrides}
    workspace.journal = Journal(request, {"alignflow.git_sha": "abc"})  # type: ignore[assignment]
    told = run_again(workspace)
    assert shlex.split(told) == [
        "alignflow", "run", "tiny/prompt", "--set", "seeds=[0, 1]", "--set", "name=it's", "--set", "budget.hours=4",
    ]  # fmt: skip
    assert code_origin(workspace) == {"git": "abc"}


def test_a_preset_file_is_named_without_its_machine(workspace: Workspace) -> None:
    workspace.journal = Journal({"flow": "study", "preset": "/home/me/mine.yaml"}, {})  # type: ignore[assignment]
    assert run_again(workspace) == "alignflow run mine.yaml"
    assert code_origin(workspace) == {}


def test_a_plan_knows_of_no_command(workspace: Workspace) -> None:
    assert run_again(workspace) == ""
    assert code_origin(workspace) == {}
