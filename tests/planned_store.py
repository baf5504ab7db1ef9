"""A finished study of stand-in artifacts: the real keys of every stage, none of the computing."""

from pathlib import Path
from typing import Any

import pytest

from alignment_core.manifest import ManifestDraft, Producer
from alignment_core.planning import Plan, Planner
from alignment_core.records import ArtifactRef
from alignment_core.stage import StageSpec
from alignment_core.store import Store
from flows import plan as room
from flows.study import study
from tasks import workspace as workspaces


def publish(store: Store, spec: StageSpec, text: str = "") -> ArtifactRef:
    """An artifact of one stage: its label (or `text`) as content, and three traces, of which a filter drops one."""
    source = store.root / ".made"
    source.mkdir(parents=True)
    (source / "result.txt").write_text(text or spec.label)
    (source / "traces.jsonl").write_text("{}\n" * (2 if spec.stage == "filter" else 3))
    draft = ManifestDraft(
        stage=spec.stage,
        key=spec.key,
        label=spec.label,
        components=spec.components,
        parents=spec.inputs,
        settings=spec.config,
        producer=Producer(started=0.0, seconds=2.0, host="here"),
    )
    return store.publish(source, draft)


class Maker(Planner):
    """Makes what the store lacks instead of planning it."""

    def consider(self, spec: StageSpec) -> ArtifactRef:
        if self.store.lookup(spec.stage, spec.key).ref is None:
            publish(self.store, spec)
        return super().consider(spec)


def make_study(root: Path, preset: str = "smoke", **overrides: Any) -> Store:
    """Fill the store under `root` with every stage of a preset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspaces, "Planner", Maker)
        made = plan(root, preset, **overrides)
    assert {stage.status for stage in made.stages} == {"cached"}
    return Store(root / "data" / "store")


def plan(root: Path, preset: str = "smoke", flow: Any = study, **overrides: Any) -> Plan:
    """The plan of a flow; overrides have double underscores for dots."""
    settings = {name.replace("__", "."): value for name, value in overrides.items()}
    return room.plan_flow(flow, str(root), preset=preset, overrides=settings)


def by_status(plan: Plan) -> dict[str, set[str]]:
    """Labels of the stages by what would become of them."""
    return {
        status: {stage.label for stage in plan.stages if stage.status == status}
        for status in ("cached", "run", "unknown")
    }
