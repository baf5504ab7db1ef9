"""What the flows refuse, or leave out, before anything trains."""

from pathlib import Path

import pytest

from alignment_core.experiments import Member, members_of
from alignment_core.planning import PLANNED
from alignment_core.records import ArtifactRef
from alignment_core.study_config import StudyConfig
from flows import steps
from flows.methods import Start
from flows.settings import load_config
from tasks.data import same_traces
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


def place(workspace: Workspace, variant: str) -> tuple[steps.Study, list[tuple[Member, Start]]]:
    """A study at its start, with one SFT member and where that begins."""
    config: StudyConfig = load_config("tiny", {"examples.variant": variant, "only": ["grpo/base"]})
    (sft,) = [one for one in config.experiments if one.name == "sft"]
    member = members_of(config, sft.model_copy(update={"grid": {}}), {})[0]
    return steps.Study(workspace, config), [(member, Start(REF, REF, "zero-shot"))]


def test_sft_without_traces_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ValueError, match="no traces to imitate"):
        steps.require_traces(*place(workspace, "filtered"))


def test_greedy_sampling_is_refused_where_grpo_would_train_on_it() -> None:
    with pytest.raises(ValueError, match="GRPO trains on samples of the policy"):
        load_config("tiny", {"sampling.temperature": 0})
    alone = [{"name": "sft", "method": "sft"}]
    assert load_config("tiny", {"sampling.temperature": 0, "experiments": alone}).sampling.temperature == 0


def test_a_scratch_model_without_arithmetic_is_refused_before_any_stage(workspace: Workspace) -> None:
    other = {"data.kind": "jsonl", "data.arithmetic": None, "data.train": "nosuch.jsonl"}
    with pytest.raises(ValueError, match="pretrained on arithmetic"):
        steps.start(workspace, load_config("tiny", other))
    assert not workspace.outcomes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"seeds": [0, 0]}, "each once"),
        ({"experiments": [{"name": "x", "method": "grpo", "grid": {"seed": []}}]}, "has no value for seed"),
        ({"prompt": "nosuch"}, "no prompt template"),
    ],
)
def test_what_the_settings_alone_can_tell_is_told_at_once(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_config("tiny", overrides)


@pytest.mark.parametrize(("kept", "same"), [(3, True), (2, False)])
def test_where_the_filter_keeps_all_traces_filtered_is_raw(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, kept: int, same: bool
) -> None:
    filtered = REF.model_copy(update={"stage": "filter"})
    for ref, rows in ((REF, 3), (filtered, kept)):
        folder = workspace.store.path(ref)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traces.jsonl").write_text("{}\n" * rows)
    monkeypatch.setattr(steps, "filter_traces", lambda *_: filtered)
    study, [(member, _)] = place(workspace, "filtered")
    for _ in range(2):
        assert steps.trace_set(study, member, REF) == (REF if same else filtered)
    assert list(study.traces.values()) == [filtered]  # the report shows what the filter found, either way


def test_while_it_is_only_planned_a_filter_is_taken_to_drop_some(workspace: Workspace) -> None:
    planned = ArtifactRef(stage="filter", key="k", digest=PLANNED)
    assert not same_traces(workspace, planned, planned)


def test_settings_are_compared_over_seeds_of_both_unless_they_are_the_same_runs() -> None:
    assert steps.comparable({0: "a", 1: "b"}, {1: "c", 2: "d"})
    assert steps.comparable({0: "a", 1: "b"}, {0: "a", 1: "c"})
    assert not steps.comparable({0: "a"}, {1: "c"})
    assert not steps.comparable({0: "a", 1: "b"}, {0: "a", 1: "b"})
    assert not steps.comparable(None, {0: "a"})
