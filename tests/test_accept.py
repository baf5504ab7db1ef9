"""Keeping an artifact whose code changed harmlessly: what it answers for, where it shows, when it is refused."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from invented_study import study as invented_study
from planned_store import by_status, plan, publish

from alignment_core import acceptance, stage
from alignment_core.acceptance import accept, inputs_to_rerun
from alignment_core.config import Config
from alignment_core.fingerprint import Fingerprint, stage_fingerprint
from alignment_core.manifest import Manifest
from alignment_core.report import ReportData, render
from alignment_core.stage import StageSpec, make_spec, run_stage
from alignment_core.stage_config import AcceptedStage, GRPOStage, ImportModelStage, PrepareStage
from alignment_core.stages import report
from alignment_core.store import Store
from flows.shelf import accept_artifact, show_artifact
from tasks import stages
from tasks.workspace import planning_workspace

EDITED = "alignment_core.policy_gradient.train_grpo"
Edit = Callable[..., None]


@pytest.fixture
def edit(monkeypatch: pytest.MonkeyPatch) -> Edit:
    """Change what a definition says, for every stage that reaches it, or the version of a library."""

    def make(name: str = EDITED, versions: dict[str, str] | None = None) -> None:
        def edited(kind: str, settings: Mapping[str, Any]) -> Fingerprint:
            found = stage_fingerprint(kind, settings)
            felt = {name: "edited"} if name in found.definitions else {}
            return Fingerprint({**found.definitions, **felt}, {**found.versions, **(versions or {})})

        monkeypatch.setattr(stage, "stage_fingerprint", edited)
        monkeypatch.setattr(acceptance, "stage_fingerprint", edited)

    return make


def of(store: Store, kind: str) -> Manifest:
    """The first artifact of a kind."""
    return next(manifest for manifest in store.manifests() if manifest.stage == kind)


def test_it_answers_for_the_new_key_and_is_not_touched(store: Store, tmp_path: Path, edit: Edit) -> None:
    kept = of(store, "grpo")
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.path(kept.ref()).rglob("*")}
    edit()
    before = {one.label: one for one in plan(tmp_path).stages}[kept.label]
    assert (before.status, before.reason) == ("run", f"code changed: {EDITED}")
    made = accept(store, kept, "only a log line moved")
    assert made.components.key() == before.key != kept.key
    found = store.lookup("grpo", made.components.key())
    assert (found.status, found.ref) == ("hit", kept.ref())
    assert found.reason == f"accepted from {kept.key[:12]}: only a log line moved"
    assert files == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.path(kept.ref()).rglob("*")}
    # What was made from it is still of the same input; the page says what was kept.
    assert by_status(plan(tmp_path))["run"] == {"report"}
    assert not by_status(plan(tmp_path))["unknown"]


def test_a_study_runs_on_with_it_under_the_key_it_was_computed_under(
    store: Store, tmp_path: Path, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = of(store, "grpo")
    edit()
    accept(store, kept, "harmless")
    asked: dict[str, Any] = {}

    class Task:
        def with_options(self, **options: Any) -> Callable[..., dict[str, Any]]:
            asked.update(options)
            return lambda spec, *_: asked.update(spec=spec) or kept.ref().model_dump()

    monkeypatch.setattr(stages, "stage_task", Task())
    workspace = planning_workspace(str(tmp_path))
    workspace.planner = None
    config = GRPOStage.model_validate(kept.settings)
    assert stages.run_cached(workspace, "grpo", config, kept.parents, kept.label) == kept.ref()
    assert asked["refresh_cache"] is False
    assert asked["cache_key_fn"](None, None) == f"grpo/{kept.key}"
    assert asked["spec"].components == kept.components
    assert workspace.outcomes[kept.label].reason.endswith(": harmless")
    assert [(one.key, one.reason) for one in workspace.accepted.values()] == [(kept.key, "harmless")]


def test_the_stage_alone_shares_it_too(store: Store, edit: Edit) -> None:
    kept = of(store, "grpo")
    edit()
    accept(store, kept, "harmless")
    spec = make_spec("grpo", GRPOStage.model_validate(kept.settings), kept.parents, kept.label)
    outcome = run_stage(store, spec)
    assert (outcome.how, outcome.ref) == ("cached", kept.ref())


def test_the_lineage_says_so(store: Store, tmp_path: Path, edit: Edit) -> None:
    kept = of(store, "grpo")
    edit()
    assert '"accepted"' not in show_artifact(tmp_path, kept.key)
    said = accept_artifact(tmp_path, kept.key[:10], "harmless")
    path = Path(said[-1].partition("remove ")[2])
    shown = json.loads(show_artifact(tmp_path, kept.key).partition("\n")[2])["accepted"]
    assert [(one["reason"], one["changed"]) for one in shown] == [("harmless", [f"code changed: {EDITED}"])]
    assert shown[0]["answers_for"] == path.stem
    path.unlink()
    assert store.lookup("grpo", path.stem).status == "missing"


def test_the_report_marks_it_with_the_reason(store: Store) -> None:
    accepted = [
        AcceptedStage(label=one.label, stage=one.stage, key=one.key, seconds=2.0, reason=f"<b>{one.stage}</b>")
        for one in (of(store, "grpo"), of(store, "sample"))
    ]
    shown = [store.path(of(store, kind).ref()) for kind in ("prepare", "grpo")]
    rows = report.stage_rows(shown, accepted)
    assert [(row.stage, row.accepted) for row in rows] == [
        ("prepare", ""),
        ("grpo", "<b>grpo</b>"),
        ("sample", "<b>sample</b>"),  # not among the page's inputs, but of the study
    ]
    page = render(ReportData(title="t", analysis=invented_study(), stages=rows))
    assert "accepted: &lt;b&gt;grpo&lt;/b&gt;" in page
    assert page.count("accepted: ") == 2
    assert "someone looked at what changed" in page
    assert "someone looked at" not in render(ReportData(title="t", analysis=invented_study(), stages=rows[:1]))


def test_without_its_artifact_an_acceptance_is_a_miss_that_says_so(store: Store, edit: Edit) -> None:
    kept = of(store, "grpo")
    edit()
    key = accept(store, kept, "harmless").components.key()
    (store.path(kept.ref()) / "result.txt").write_text("replaced by something longer")
    assert store.lookup("grpo", key).status == "damaged"
    store.path(kept.ref()).rename(store.root / ".elsewhere")
    found = store.lookup("grpo", key)
    assert (found.status, found.ref) == ("deleted", None)
    assert "was deleted (accepted from" in found.reason


def test_an_artifact_that_came_out_otherwise_since_is_not_the_one_accepted(store: Store, edit: Edit) -> None:
    kept = of(store, "grpo")
    spec = make_spec("grpo", GRPOStage.model_validate(kept.settings), kept.parents, kept.label)
    edit()
    key = accept(store, kept, "harmless").components.key()
    assert publish(store, spec, "other weights").key == kept.key
    found = store.lookup("grpo", key)
    assert (found.status, found.ref) == ("deleted", None)
    assert "gone or was replaced" in found.reason


def test_behind_a_stage_that_runs_it_may_still_be_cached(store: Store, tmp_path: Path, edit: Edit) -> None:
    kept = of(store, "grpo")
    edit()
    assert kept.label in by_status(plan(tmp_path, data__arithmetic__train=300))["run"]
    accept(store, kept, "harmless")
    assert kept.label in by_status(plan(tmp_path, data__arithmetic__train=300))["unknown"]


def test_nothing_changed_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="nothing changed since"):
        accept(store, of(store, "grpo"), "harmless")


def test_a_second_word_on_the_same_code_is_refused(store: Store, edit: Edit) -> None:
    kept = of(store, "grpo")
    edit()
    accept(store, kept, "harmless")
    with pytest.raises(ValueError, match=r"need not be accepted: accepted from \w+: harmless"):
        accept(store, kept, "again")


def test_code_that_has_its_own_artifact_needs_no_other(store: Store, edit: Edit) -> None:
    kept = of(store, "grpo")
    edit()
    own = publish(store, make_spec("grpo", GRPOStage.model_validate(kept.settings), kept.parents, kept.label))
    with pytest.raises(ValueError, match=f"an artifact of its own, {own.key[:12]}"):
        accept(store, kept, "harmless")


def test_no_reason_is_refused(store: Store, edit: Edit) -> None:
    edit()
    with pytest.raises(ValueError, match="--reason TEXT"):
        accept(store, of(store, "grpo"), "  ")


def test_other_versions_are_refused_by_name(store: Store, edit: Edit) -> None:
    edit(versions={"torch": "99.0"})
    with pytest.raises(ValueError, match=r"more than code differs: versions changed: torch \S+ -> 99\.0"):
        accept(store, of(store, "grpo"), "harmless")


def test_a_setting_that_came_with_the_code_is_refused_by_name(
    store: Store, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(GRPOStage):
        penalty: float = 0.5

    edit()
    monkeypatch.setattr(acceptance, "settings_class", lambda _stage: Later)
    with pytest.raises(ValueError, match=r"config changed: penalty absent -> 0\.5"):
        accept(store, of(store, "grpo"), "harmless")


def test_a_setting_that_has_left_the_key_is_no_obstacle(
    store: Store, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = of(store, "grpo")
    read = kept.components.config["grpo"]
    older = kept.components.model_copy(
        update={"config": {**kept.components.config, "grpo": {**read, "cliprange": 0.2}}}
    )
    edit()
    accepted = accept(store, kept.model_copy(update={"components": older}), "a default that nothing reads")
    assert accepted.changed == [f"code changed: {EDITED}"]
    older.config["grpo"]["group_size"] = 3
    monkeypatch.setattr(
        acceptance, "differences", lambda before, today, most: [f"of {before.config['grpo']['group_size']}"]
    )
    with pytest.raises(ValueError, match="than code differs: of 3"):
        accept(store, kept.model_copy(update={"components": older}), "what is read counts")


def test_settings_that_are_no_longer_valid_are_refused_by_name(
    store: Store, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Narrower(Config):
        seed: int

    edit()
    monkeypatch.setattr(acceptance, "settings_class", lambda _stage: Narrower)
    with pytest.raises(ValueError, match=r"no longer valid \(grpo: Extra inputs"):
        accept(store, of(store, "grpo"), "harmless")


def test_an_input_that_is_another_one_today_is_refused_by_name(store: Store, edit: Edit) -> None:
    prepare = of(store, "prepare")
    edit("alignment_core.problems.prepare")
    spec = make_spec("prepare", PrepareStage.model_validate(prepare.settings), {}, prepare.label)
    publish(store, spec, "other problems")
    with pytest.raises(ValueError, match="more than code differs: inputs changed: problems"):
        accept(store, of(store, "grpo"), "harmless")


def test_an_input_that_would_be_computed_anew_is_named(store: Store, tmp_path: Path, edit: Edit) -> None:
    edit("alignment_core.models.save_model")  # the base model, and every training run
    kept = of(store, "grpo")
    said = accept_artifact(tmp_path, kept.key, "harmless")
    assert any("its input base model" in line and "accept it too" in line for line in said)
    accept(store, of(store, "pretrain"), "harmless")
    assert inputs_to_rerun(store, kept) == []
    assert {one.label for one in plan(tmp_path).stages if one.reason.endswith(": harmless")} == {
        "base model",
        kept.label,
    }


def test_a_damaged_artifact_is_refused(store: Store, edit: Edit) -> None:
    kept = of(store, "grpo")
    edit()
    (store.path(kept.ref()) / "result.txt").unlink()
    with pytest.raises(ValueError, match=r"cannot be accepted: its file result\.txt is missing"):
        accept(store, kept, "harmless")


def test_every_stage_kind_has_settings_that_are_found_without_importing_it() -> None:
    folder = Path(stages.__file__).parents[1] / "alignment_core" / "stages"
    kinds = [path.stem for path in folder.glob("*.py") if "CONFIG =" in path.read_text()]
    assert len(kinds) >= 10
    assert all(issubclass(acceptance.settings_class(kind), Config) for kind in kinds)
    assert acceptance.settings_class("import_model") is ImportModelStage


def test_an_artifact_of_local_files_can_be_accepted(store: Store, tmp_path: Path, edit: Edit) -> None:
    """Its key has their content, not their names; the settings in its manifest have both."""
    data: Any = {"kind": "jsonl", "train": "here.jsonl"}
    config = PrepareStage(data=data, template="{question}", seed=0, content={"train": "abc"})
    spec: StageSpec = make_spec("prepare", config, {}, "prepare")
    ref = publish(store, spec)
    edit("alignment_core.problems.prepare")
    assert accept(store, store.manifest("prepare", ref.key), "harmless").kept == ref
