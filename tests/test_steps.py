"""What the flows refuse, or leave out, before anything trains."""

from pathlib import Path

import pytest

from alignment_core.config import StudyConfig
from alignment_core.records import ArtifactRef
from flows import steps
from flows.settings import load_config
from tasks.workspace import Workspace, open_workspace

REF = ArtifactRef(stage="prepare", key="k", digest="d")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with a prepare artifact that has no trace."""
    with open_workspace(str(tmp_path), "study", "run") as opened:
        folder = opened.store.path(REF)
        folder.mkdir(parents=True)
        (folder / "traces.jsonl").write_text("")
        return opened


def ladder(workspace: Workspace, **overrides: object) -> steps.Ladder:
    """A study at its start."""
    config: StudyConfig = load_config("tiny", overrides)
    return steps.Ladder(workspace, config, REF, REF)


def test_a_start_from_sft_without_traces_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ValueError, match="no traces to start from SFT"):
        steps.require_traces(ladder(workspace))
    alone = ladder(workspace, **{"grpo.starts": ["base"]})
    steps.require_traces(alone)
    assert not steps.has_traces(alone)


def test_greedy_sampling_is_refused_where_grpo_would_train_on_it(workspace: Workspace) -> None:
    greedy = ladder(workspace, **{"sampling.temperature": 0})
    with pytest.raises(ValueError, match="GRPO trains on samples of the policy"):
        steps.require_trainable(greedy.config)
    steps.require_trainable(ladder(workspace, **{"sampling.temperature": 0, "grpo": None}).config)


def test_a_scratch_model_without_arithmetic_is_refused_before_any_stage(workspace: Workspace) -> None:
    other = {"data.kind": "jsonl", "data.arithmetic": None, "data.train": "nosuch.jsonl"}
    with pytest.raises(ValueError, match="pretrained on arithmetic"):
        steps.start(workspace, load_config("tiny", other))
    assert not workspace.outcomes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"seeds": [0, 0]}, "each once"),
        ({"sweep.sizes": [], "grpo.starts": ["base"]}, "must each have a member"),
        ({"prompt": "nosuch"}, "no prompt template"),
    ],
)
def test_what_the_settings_alone_can_tell_is_told_at_once(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_config("tiny", overrides)
