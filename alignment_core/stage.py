"""One stage of a study: its key, its inputs, its run, its publication.

`run_stage` is the whole of it. A stage kind is a module `alignment_core.stages.<kind>` with `CONFIG` (its
settings class) and `run(config, inputs, output, run)`. Prefect and MLflow are not needed here.
"""

import importlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignment_core.config_base import Config
from alignment_core.disk import disk_errors
from alignment_core.events import Event, OnEvent
from alignment_core.extension import go_on_from_shorter, keep_state
from alignment_core.failures import HostError, torch_told
from alignment_core.fingerprint import require_unedited, stage_fingerprint
from alignment_core.interruption import interruptible
from alignment_core.locks import artifacts_in_use, exclusive, in_use
from alignment_core.manifest import Components, Manifest, ManifestDraft, Producer
from alignment_core.operation import computed_on
from alignment_core.records import ArtifactRef, Record
from alignment_core.remote import StoreUnreachable
from alignment_core.shared_run import SharedRun, shared_run
from alignment_core.stage_run import StageRun
from alignment_core.store import Lookup, Store


class StageSpec(Record):
    """Everything a stage run is a function of."""

    stage: str
    label: str
    """For people: which of the study's stages this is, e.g. `sft/512/raw/seed0`. Not in the key."""
    config: dict[str, Any]
    inputs: dict[str, ArtifactRef]
    components: Components
    key: str


class StageOutcome(Record):
    """How a stage ended well."""

    ref: ArtifactRef
    how: Literal["cached", "ran", "resumed"]
    reason: str
    seconds: float


def make_spec(stage: str, config: Config, inputs: Mapping[str, ArtifactRef], label: str) -> StageSpec:
    """The spec of a stage, key included; imports no stage code."""
    settings = config.model_dump(mode="json")
    code = stage_fingerprint(stage, settings)
    components = Components(
        stage=stage,
        config=config.key_settings(),
        inputs={name: ref.digest for name, ref in inputs.items()},
        code=code.definitions,
        versions=code.versions,
    )
    return StageSpec(
        stage=stage,
        label=label,
        config=settings,
        inputs=dict(inputs),
        components=components,
        key=components.key(),
    )


def spec_of(manifest: Manifest) -> StageSpec:
    """The spec an artifact was computed from."""
    return StageSpec(
        stage=manifest.stage,
        label=manifest.label,
        config=manifest.settings or manifest.components.config,
        inputs=manifest.parents,
        components=manifest.components,
        key=manifest.key,
    )


def run_stage(
    store: Store,
    spec: StageSpec,
    on_event: OnEvent | None = None,
    annotations: Mapping[str, str] | None = None,
    reason: str = "",
    checkpoint_seconds: float | None = None,
) -> StageOutcome:
    """Return the artifact of `spec`, computing it if the store has no whole copy.

    One process works on a key at a time (flock, freed by the kernel on death; among hosts that share a store also
    `alignment_core.attempts`); a second one says so, waits and shares the result. A run that was cut off goes on from
    its last complete checkpoint. SIGTERM and Ctrl-C make it save at its next step boundary and stop
    (`alignment_core.interruption`).
    Raises what the stage does (`alignment_core.failures`), MemoryError where torch has none left; OSError, with the
    remedy, if the disk is full or an input is not whole; with a shared store also Superseded if another host took
    the stage over while this one was silent, and StoreUnreachable if it stayed away for longer than the patience.
    """
    asked = time.time()
    name = f"{spec.stage}-{spec.key}"

    def say(text: str) -> None:
        if on_event is not None:
            on_event(Event(kind="say", step=0, time=time.time(), name=text))

    def on_wait(holder: str) -> None:
        say(f"waits for {holder}, which computes the same stage")

    with in_use(store.root), exclusive(store.root / ".locks" / f"{name}.lock", on_wait):
        began = time.time()
        found = store.lookup(spec.stage, spec.key)
        if found.ref is not None:
            if store.shared is not None and (told := store.shared.share_if_absent(found.ref)):
                say(told)
            return _cached(store, spec, found.ref, reason, began - asked)
        with _held_among_hosts(store, spec, say) as shared:
            if shared is not None:  # whoever held it may have finished
                began = time.time()
                found = store.lookup(spec.stage, spec.key)
                if found.ref is not None:
                    return _cached(store, spec, found.ref, reason, began - asked)
            computation = _Computation(
                store, spec, on_event, dict(annotations or {}), checkpoint_seconds, shared, began
            )
            ref, resumed_from = computation.compute()
    how: Literal["ran", "resumed"] = "ran" if resumed_from is None else "resumed"
    return StageOutcome(ref=ref, how=how, reason=reason or _why(found), seconds=time.time() - asked)


@dataclass(frozen=True)
class _Computation:
    """One attempt at a stage that nobody else works on."""

    store: Store
    spec: StageSpec
    on_event: OnEvent | None
    annotations: dict[str, str]
    checkpoint_seconds: float | None
    shared: SharedRun | None
    began: float

    def compute(self) -> tuple[ArtifactRef, int | None]:
        """Run the stage and publish it; its reference, and the step it went on from."""
        store, spec = self.store, self.spec
        folder = store.root / ".work" / f"{spec.stage}-{spec.key}"
        inputs_in_use = artifacts_in_use(store.root, spec.inputs.values())
        with disk_errors(store.root), inputs_in_use, interruptible() as interruption:
            module = importlib.import_module(f"alignment_core.stages.{spec.stage}")
            require_unedited(spec.components.code)
            config = module.CONFIG.model_validate(spec.config)
            rounding = config.rounding_settings()
            run = StageRun(folder, self.on_event, interruption, self.checkpoint_seconds, rounding, self.shared)
            extends = go_on_from_shorter(store, spec.components, folder)
            resumed_from = run.resume()
            if extends:
                run.say(extends)
            inputs = {name: _whole_input(store, name, ref) for name, ref in spec.inputs.items()}
            try:
                with _companions(spec, inputs, folder), torch_told():
                    module.run(config, inputs, run.output, run)
            finally:
                run.close()
            interruption.patient = True  # what is finished is published first
            ref = self._publish(run, resumed_from)
            shutil.rmtree(folder)
        return ref, resumed_from

    def _publish(self, run: StageRun, resumed_from: int | None) -> ArtifactRef:
        guard = None
        if self.shared is not None:
            guard = self.shared.attempt.check
            with suppress(StoreUnreachable):  # it is published here all the same, and its upload waits for the store
                guard()
        keep_state(self.store, self.spec.stage, self.spec.key, run.state)
        draft = ManifestDraft(
            stage=self.spec.stage,
            key=self.spec.key,
            label=self.spec.label,
            components=self.spec.components,
            parents=self.spec.inputs,
            settings=self.spec.config,
            producer=Producer(
                started=self.began,
                seconds=run.seconds(),
                host=socket.gethostname(),
                resumed_from_step=resumed_from,
                annotations=self.annotations | {name: str(value) for name, value in computed_on({}).items()},
            ),
        )
        ref = self.store.publish(run.output, draft, guard)
        if self.shared is not None:
            self.shared.published()
        return ref


def _cached(store: Store, spec: StageSpec, ref: ArtifactRef, reason: str, waited: float) -> StageOutcome:
    """The outcome of a stage that is there."""
    # A kill between the publication and the clean-up leaves the work folder behind, checkpoints and all.
    shutil.rmtree(store.root / ".work" / f"{spec.stage}-{spec.key}", ignore_errors=True)
    return StageOutcome(ref=ref, how="cached", reason=reason or "computed meanwhile", seconds=waited)


@contextmanager
def _held_among_hosts(store: Store, spec: StageSpec, say: Callable[[str], None]) -> Iterator[SharedRun | None]:
    """Hold a stage among the hosts that share a store, if there is one."""
    if store.shared is None:
        yield None
        return
    name = f"{spec.stage}-{spec.key}"
    with shared_run(store.shared.remote, name, store.root, say, spec.label) as run:
        yield run


def _companions(spec: StageSpec, inputs: dict[str, Path], folder: Path) -> AbstractContextManager[None]:
    """The further processes of a stage that trains in several."""
    count = spec.config.get("processes", 1)
    if count == 1:
        return nullcontext()
    from alignment_core.followers import Following, led_together  # which import torch

    code = spec.components.code
    task = Following(stage=spec.stage, settings=spec.config, inputs=inputs, folder=folder, code=code)
    return led_together(count, task)


def _whole_input(store: Store, name: str, ref: ArtifactRef) -> Path:
    """Folder of an input; HostError if it is not the artifact that the key was made of."""
    found = store.lookup(ref.stage, ref.key)
    if found.ref != ref:
        why = found.reason or ("there is no such artifact" if found.ref is None else "its content is another")
        raise HostError(f"input {name} ({ref.stage}/{ref.key[:12]}) cannot be used: {why}. Run the study to repair it")
    return store.path(ref)


def _why(found: Lookup) -> str:
    return found.reason or "no such artifact yet"
