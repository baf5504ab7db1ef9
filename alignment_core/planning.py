"""What a study would compute, before anything does: the answer of the store to every stage, and what disk it takes.

A `Planner` is asked for artifacts in the order in which a study asks for them. It answers with the store's where
there is one, else with a placeholder, so that the stages after it can be told apart: those that run for reasons of
their own from those that run only if what is before them comes out differently. Nothing is written.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from alignment_core.changes import differences, explain_miss
from alignment_core.config import ScratchModelConfig
from alignment_core.events import read_events
from alignment_core.extension import find_shorter
from alignment_core.forecast import PROBLEMS, Forecast, Like, Source, forecast, split_sizes
from alignment_core.manifest import Components, Manifest
from alignment_core.model_size import CHECKPOINT_BYTES, WEIGHT_BYTES, ModelSize, checkpoint_size, scratch_size
from alignment_core.records import ArtifactRef, Record
from alignment_core.stage import StageSpec
from alignment_core.stage_run import StageRun
from alignment_core.store import Store
from alignment_core.training_config import GRPOConfig

PLANNED = "planned: "
"""How the digest of a placeholder begins, and its key where that is unknown too; the label of its stage follows."""
UNKNOWN_COUNT = -1
"""Stands in a stage's settings for a count that only an artifact to come can tell."""
CHECKPOINTS_AT_ONCE = 3
"""The last one, the best one, and the one that is being written."""
WRITES_MODEL = "alignment_core.models.save_model"
TIMED = frozenset({"pretrain", "sample", "sft", "grpo", "dpo"})
"""Stages that a forecast is for: they compute on a model, the others take seconds."""
WRITES_CHECKPOINT = "alignment_core.checkpoints.write_checkpoint"

Status = Literal["cached", "run", "unknown"]


class PlannedStage(Record):
    """One stage of a study and what would become of it."""

    label: str
    stage: str
    key: str | None
    """None where the key depends on the result of a stage that has to run first."""
    status: Status
    reason: str
    publishes: bool
    """Whether the stage leaves weights behind."""
    trains: bool
    """Whether it writes checkpoints of model and optimizer on its way."""
    keeps_state: bool
    """Whether it keeps the last of them for a run of more steps."""
    accepted: str = ""
    """Why an artifact of older code stands, if one does."""
    model: ModelSize | None
    """Size of the model it works on, where known."""
    forecast: Forecast | None = None
    """How long it may take; None if nobody knows, or it is there."""

    def weight_bytes(self) -> int:
        """What its weights will take; 0 if there are none, or their size is unknown."""
        return WEIGHT_BYTES * self.model.parameters if self.publishes and self.model else 0

    def state_bytes(self) -> int:
        """What the training state takes that it keeps."""
        return CHECKPOINT_BYTES * self.model.parameters if self.keeps_state and self.model else 0

    def checkpoint_bytes(self) -> int:
        """What one of its checkpoints takes; 0 if there are none, or their size is unknown."""
        return CHECKPOINT_BYTES * self.model.parameters if self.trains and self.model else 0


class Plan(Record):
    """Every stage of a study, in the order in which it asks for them."""

    stages: list[PlannedStage]
    notes: list[str] = Field(default_factory=list)
    """What the plan had to assume."""

    def to_compute(self) -> list[PlannedStage]:
        """The stages that run, and those that may."""
        return [one for one in self.stages if one.status != "cached"]

    def weight_bytes(self) -> int:
        """Most that weights will be added to the store."""
        return sum(one.weight_bytes() for one in self.to_compute())

    def state_bytes(self) -> int:
        """Most that training states will be added."""
        return sum(one.state_bytes() for one in self.to_compute())

    def checkpoint_bytes(self) -> int:
        """Most that checkpoints take at any time: those of one stage, dropped when it is published."""
        return CHECKPOINTS_AT_ONCE * max((one.checkpoint_bytes() for one in self.to_compute()), default=0)

    def seconds(self, source: Source) -> float:
        """Forecast of what runs, by where it comes from."""
        found = (one.forecast for one in self.to_compute() if one.forecast is not None)
        return sum(one.seconds for one in found if one.source == source)

    def untimed(self) -> list[PlannedStage]:
        """Stages on a model for which there is no forecast."""
        return [one for one in self.to_compute() if one.forecast is None and one.stage in TIMED]

    def unsized(self) -> list[PlannedStage]:
        """Training stages that the forecast leaves out, since nobody knows the size of their model yet."""
        return [one for one in self.to_compute() if (one.trains or one.publishes) and one.model is None]


def is_planned(ref: ArtifactRef) -> bool:
    """Whether a reference is a placeholder, with no artifact behind it."""
    return ref.digest.startswith(PLANNED)


class Planner:
    """Answers in the place of a store, and keeps the plan."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stages: dict[str, PlannedStage] = {}
        self.notes: list[str] = []
        self._sizes: dict[str, ModelSize | None] = {}
        """Size of the model in an artifact, by key."""
        self._splits: dict[str, Mapping[str, int]] = {}
        """Problems of each split, by the key of their artifact."""
        self._by_kind: dict[str, Like | None] = {}
        self._ledger = store.ledger()

    def plan(self) -> Plan:
        """What was asked for so far."""
        return Plan(stages=list(self.stages.values()), notes=self.notes)

    def consider(self, spec: StageSpec) -> ArtifactRef:
        """Take a stage into the plan; the store's artifact if it has one, else a placeholder."""
        behind = sorted({ref.digest.removeprefix(PLANNED) for ref in spec.inputs.values() if is_planned(ref)})
        key = None if behind else spec.key
        placeholder = f"{PLANNED}{spec.label}"
        ref = ArtifactRef(stage=spec.stage, key=key or placeholder, digest=placeholder)
        status: Status
        accepted = ""
        if behind:
            status, reason = self._after(spec, _name_some(behind))
        else:
            found = self.store.lookup(spec.stage, spec.key)
            ref = found.ref or ref
            status = "run" if found.ref is None else "cached"
            accepted = found.accepted
            reason = found.reason or ("same key" if found.ref else self._why(spec))
        size = self._sizes[ref.key] = self._model_size(spec, ref)
        if spec.stage == "prepare":
            self._splits[ref.key] = self._counted(ref) or split_sizes(spec.config["data"])
        self.stages[spec.label] = PlannedStage(
            label=spec.label,
            stage=spec.stage,
            key=None if key is None else ref.key,
            status=status,
            reason=reason,
            publishes=WRITES_MODEL in spec.components.code,
            trains=WRITES_CHECKPOINT in spec.components.code,
            keeps_state="grpo" in spec.config and GRPOConfig.model_validate(spec.config["grpo"]).keeps_state,
            accepted=accepted,
            model=size,
            forecast=self._forecast(spec, size) if status != "cached" and spec.stage in TIMED else None,
        )
        return ref

    def _after(self, spec: StageSpec, depends: str) -> tuple[Status, str]:
        """What becomes of a stage behind one that has to run.

        It may be cached if what it depends on comes out as it once did. It runs for certain if it differs in
        anything else from every artifact of its label.
        """
        own = "first run"
        for newest, previous in enumerate(self._previous(spec)):
            # As if the results to come were those of that time: what then still differs, differs for certain.
            alike = previous.model_copy(
                update={
                    "inputs": _overlay(previous.inputs, spec.components.inputs),
                    "config": _overlay(previous.config, spec.components.config),
                }
            )
            changed = differences(alike, spec.components)
            if not changed:
                return "unknown", depends
            own = "; ".join(changed) if newest == 0 else own
        return "run", f"{own}; {depends}"

    def _previous(self, spec: StageSpec) -> Iterator[Components]:
        """What the artifacts of this stage and label were made of, newest first, and what they were accepted for."""
        for line in reversed(self._ledger):
            if (line["stage"], line["label"]) == (spec.stage, spec.label):
                with suppress(FileNotFoundError, ValidationError):
                    manifest = self.store.manifest(line["stage"], line["key"])
                    yield manifest.components
                    yield from (one.components for one in self.store.acceptances(manifest.ref()))

    def _why(self, spec: StageSpec) -> str:
        """Why a stage runs whose key is known, and how far an earlier attempt got."""
        checkpoint = StageRun(self.store.root / ".work" / f"{spec.stage}-{spec.key}").latest_checkpoint()
        if checkpoint is not None:
            progress = f"; goes on from step {int(checkpoint.name)}"
        elif shorter := find_shorter(self.store, spec.components):
            there = "and it goes on from there" if shorter.has_state else "but not its training state: from step 0"
            progress = f"; {shorter.label} has {shorter.steps} of its steps, {there}"
        else:
            progress = ""
        return explain_miss(self.store, spec.components, spec.label) + progress

    def _forecast(self, spec: StageSpec, size: ModelSize | None) -> Forecast | None:
        splits = self._problems(spec.inputs.get("problems"))
        parameters = None if size is None else size.parameters
        return forecast(spec.stage, spec.config, parameters, splits, self._like(spec.stage))

    def _like(self, stage: str) -> Like | None:
        """The newest artifact of a kind."""
        if stage not in self._by_kind:
            keys = [line["key"] for line in reversed(self._ledger) if line["stage"] == stage]
            found = (_manifest(self.store, stage, key) for key in keys)
            newest = next((one for one in found if one is not None), None)
            self._by_kind[stage] = None if newest is None else self._measure(newest)
        return self._by_kind[stage]

    def _measure(self, manifest: Manifest) -> Like:
        """What a stage of the store did, on how large a model, and how long it took."""
        folder = self.store.folder(manifest.parents.get("model", manifest.ref())) / "model"
        known = checkpoint_size(str(folder)) if folder.is_dir() else None
        return Like(
            settings=_as_done(manifest.settings or manifest.components.config, self.store.folder(manifest.ref())),
            parameters=None if known is None else known.parameters,
            splits=self._problems(manifest.parents.get("problems")),
            seconds=manifest.producer.seconds,
            updates=_update_seconds(self.store.folder(manifest.ref())),
        )

    def _problems(self, ref: ArtifactRef | None) -> Mapping[str, int]:
        """Problems of each split that a stage works on."""
        if ref is None:
            return PROBLEMS
        if ref.key not in self._splits:
            self._splits[ref.key] = self._counted(ref) or PROBLEMS
        return self._splits[ref.key]

    def _counted(self, ref: ArtifactRef) -> dict[str, int] | None:
        """The rows of an artifact's splits; None where they are not here."""
        files = {split: self.store.folder(ref) / f"{split}.jsonl" for split in PROBLEMS}
        if is_planned(ref) or not all(file.is_file() for file in files.values()):
            return None
        return {split: len(file.read_bytes().splitlines()) for split, file in files.items()}

    def _model_size(self, spec: StageSpec, ref: ArtifactRef) -> ModelSize | None:
        """Size of the model a stage makes, imports or works on; that of a finished one is read from its folder."""
        if spec.stage == "import_model":
            return checkpoint_size(spec.config["source"], spec.config["revision"])
        folder = self.store.folder(ref) / "model"
        if not is_planned(ref) and folder.is_dir():
            return checkpoint_size(str(folder))
        if spec.stage == "pretrain":
            return scratch_size(ScratchModelConfig.model_validate(spec.config["model"]))
        return self._sizes.get(spec.inputs["model"].key) if "model" in spec.inputs else None


def _manifest(store: Store, stage: str, key: str) -> Manifest | None:
    with suppress(FileNotFoundError, ValidationError):
        return store.manifest(stage, key)
    return None


def _as_done(settings: Mapping[str, Any], artifact: Path) -> Mapping[str, Any]:
    """Settings of a finished stage with the steps that it took, where a budget of time ended it before those asked."""
    grpo = settings.get("grpo") or {}
    if grpo.get("time_budget_hours") is None:
        return settings
    with suppress(FileNotFoundError):
        steps = max((event.step for event in read_events(artifact) if event.kind == "point"), default=0)
        return {**settings, "grpo": {**grpo, "n_grpo_steps": max(steps, 1)}}
    return settings


def _update_seconds(artifact: Path) -> float | None:
    """Seconds of a stage's optimizer updates; None where its record is not here or tells of none."""
    with suppress(FileNotFoundError):
        points = [event.metrics.get("time/update") for event in read_events(artifact) if event.kind == "point"]
        told = [seconds for seconds in points if seconds is not None]
        return sum(told) if told else None
    return None


def _name_some(labels: list[str]) -> str:
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return f"depends on {', '.join(labels[:3])}{more}"


def _overlay(old: Any, new: Any) -> Any:
    """`old` with the unknown leaves of `new` in their places."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {name: _overlay(value, new[name]) if name in new else value for name, value in old.items()}
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [_overlay(*pair) for pair in zip(old, new, strict=True)]
    unknown = new == UNKNOWN_COUNT if isinstance(new, int) else isinstance(new, str) and new.startswith(PLANNED)
    return new if unknown else old
