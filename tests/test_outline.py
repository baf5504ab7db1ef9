"""What a page says of a study beside its numbers: pytest tests/test_outline.py"""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alignment_core.journal import begin_run, command_line, past_runs
from flows import cli
from flows.settings import load_config, parse_override
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
        "alignflow", "run", "tiny/prompt", "--set", "seeds=[0, 1]", "--set", 'name="it\'s"', "--set", "budget.hours=4",
    ]  # fmt: skip
    assert code_origin(workspace) == {"git": "abc"}


@pytest.fixture
def type_command(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], str, str]]:
    """Types a command in a folder with `my studies/mine.yaml`; what reached the flow, the page's and journal's word."""
    here = tmp_path / "here"
    (here / "my studies").mkdir(parents=True)
    (here / "my studies" / "mine.yaml").write_text("extends: smoke\nname: mine\n")
    monkeypatch.chdir(here)
    asked: dict[str, Any] = {}

    def called(name: str, root: Path, **parameters: Any) -> tuple[dict[str, Any], None]:
        asked.update(parameters, flow=name.replace("_", "-"))
        return {"rows": [], "stages": {}}, None

    monkeypatch.setattr(cli, "_call_flow", called)

    def typed(*words: str) -> tuple[dict[str, Any], str, str]:
        done = CliRunner().invoke(cli.app, [*words, "--root", str(tmp_path)])
        assert done.exit_code == 0, done.output
        journal = begin_run(tmp_path / "store", "mine", "study mine", request=asked)
        workspace.journal = journal
        page = run_again(workspace)
        journal.release(shown=True)
        monkeypatch.chdir("/")
        return dict(asked), page, past_runs(tmp_path / "store")[-1].command()

    return typed


Typed = Callable[..., tuple[dict[str, Any], str, str]]
FILE = "my studies/mine.yaml"


@pytest.mark.parametrize("way", [FILE, "my studies/../my studies/mine.yaml", "../here/my studies/mine.yaml"])
def test_a_study_file_is_named_as_it_was_typed(type_command: Typed, way: str, tmp_path: Path) -> None:
    values = {"name": "it's", "seeds": [0, 1], "model.revision": "2e-5", "description": "true", "question": "é: 1 # 2"}
    options = [
        word for name, value in values.items() for word in ("--set", f"{name}={json.dumps(value, ensure_ascii=False)}")
    ]
    asked, page, journal = type_command("run", way, *options)
    assert asked["overrides"] == values
    for told, preset in ((page, way), (journal, f"{tmp_path}/here/{way}")):
        program, command, file, *settings = shlex.split(told)
        assert (program, command, file) == ("alignflow", "run", preset)
        assert dict(parse_override(text) for text in settings[1::2]) == values
    assert load_config(shlex.split(journal)[2], values).name == "it's"


def test_a_file_by_its_whole_path_is_named_from_where_it_was_typed(type_command: Typed, tmp_path: Path) -> None:
    _, page, _ = type_command("run", str(tmp_path / "here" / FILE))
    assert page == f"alignflow run '{FILE}'"


def test_a_file_elsewhere_is_found_from_where_it_was_typed(type_command: Typed, tmp_path: Path) -> None:
    elsewhere = tmp_path / "other.yaml"
    elsewhere.write_text("extends: smoke\n")
    assert type_command("run", str(elsewhere))[1] == "alignflow run ../other.yaml"


def test_the_page_asks_for_the_study_and_the_journal_for_the_part(type_command: Typed) -> None:
    _, page, journal = type_command("ei", "smoke")
    assert (page, journal) == ("alignflow run smoke", "alignflow ei smoke")


@pytest.mark.parametrize(
    "text",
    ["adam", "openai/gsm8k", "./model", "two words", ".5", ".inf", "2e-5", "on", "NaN", "", "128", "a: b", "- a", "😀"],
)
def test_a_text_comes_back_as_it_was(text: str) -> None:
    told = command_line("study", "tiny", {"overrides": {"name": text}})
    assert parse_override(shlex.split(told)[-1]) == ("name", text)


def test_a_journal_names_the_model_that_was_evaluated(workspace: Workspace, tmp_path: Path) -> None:
    request = {"flow": "evaluation", "preset": "tiny", "overrides": {}, "artifact": "0123abcd"}
    begin_run(tmp_path, "tiny", "evaluation tiny", request=request).release(shown=True)
    assert past_runs(tmp_path)[0].command() == "alignflow eval tiny --model 0123abcd"


def test_a_shipped_preset_has_no_path(workspace: Workspace) -> None:
    workspace.journal = Journal({"flow": "study", "preset": "tiny/prompt"}, {})  # type: ignore[assignment]
    assert run_again(workspace) == "alignflow run tiny/prompt"
    assert code_origin(workspace) == {}


def test_a_plan_knows_of_no_command(workspace: Workspace) -> None:
    assert run_again(workspace) == ""
    assert code_origin(workspace) == {}
