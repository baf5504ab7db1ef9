"""The documents name what there is: their links lead somewhere, and the commands in them exist."""

import re
from pathlib import Path

import pytest
import typer

from flows.cli import app
from flows.presets import scale_names, study_names

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
SCALES = "|".join(scale_names())
COMMAND = re.compile(rf"(?:^ +|`)alignflow (?:artifacts )?([a-z][a-z-]*)(?: ((?:{SCALES})(?:/[\w-]+)?))?", re.MULTILINE)


def commands() -> set[str]:
    """Names of all commands, those of groups included."""
    group = typer.main.get_command(app)
    found = set()
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        found |= {name, *getattr(command, "commands", {})}
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_of_the_project(document: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(document.read_text(encoding="utf-8"))]
    own = [target for target in targets if target and "://" not in target]
    assert [target for target in own if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_presets_exist(document: Path) -> None:
    known = commands()
    for command, preset in COMMAND.findall(document.read_text(encoding="utf-8")):
        assert command in known, f"alignflow {command}"
        if "/" in preset:
            assert preset.partition("/")[2] in study_names(), preset


def test_what_is_looked_for_is_found() -> None:
    """So that neither test passes because its pattern matches nothing."""
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    assert "images/report.png" in LINK.findall(guide)
    assert {("run", "tiny/grpo-baselines"), ("show", ""), ("ui", "")} <= set(COMMAND.findall(guide))
