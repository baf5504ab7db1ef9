"""One stage of a study: its key, its inputs, its run, its publication.

`run_stage` is the whole of it. A stage kind is a module `alignment_core.stages.<kind>` with `CONFIG` (its
settings class) and `run(config, inputs, output, run)`. Prefect and MLflow are not needed here.
"""

import importlib
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from alignment_core.config_base import Config
from alignment_core.disk import disk_errors
from alignment_core.events import Event, OnEvent
from alignment_core.extension import go_on_from_shorter, keep_state
from alignment_core.fingerprint import require_unedited, stage_fingerprint
from alignment_core.interruption import interruptible
from alignment_core.locks import exclusive, in_use
from alignment_core.records import ArtifactRef, Record
from alignment_core.stage_run import StageRun
from alignment_core.store import (
    Components,
    Lookup,
    ManifestDraft,
    Producer,
    Store,
)


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


def run_stage(
    store: Store,
    spec: StageSpec,
    on_event: OnEvent | None = None,
    annotations: Mapping[str, str] | None = None,
    reason: str = "",
    checkpoint_seconds: float | None = None,
) -> StageOutcome:
    """Return the artifact of `spec`, computing it if the store has no whole copy.

    One process works on a key at a time (flock, freed by the kernel on death); a second one says so, waits and
    shares the result. A run that was cut off goes on from its last complete checkpoint. SIGTERM and Ctrl-C
    make it save at its next step boundary and stop (`alignment_core.interruption`).
    Raises OSError, with the remedy, if the disk is full.
    """
    asked = time.time()
    folder = store.root / ".work" / f"{spec.stage}-{spec.key}"

    def on_wait(holder: str) -> None:
        if on_event is not None:
            text = f"waits for {holder}, which computes the same stage"
            on_event(Event(kind="say", step=0, time=time.time(), name=text))

    lock = store.root / ".locks" / f"{spec.stage}-{spec.key}.lock"
    with in_use(store.root), exclusive(lock, on_wait):
        began = time.time()
        found = store.lookup(spec.stage, spec.key)
        if found.ref is not None:
            why = reason or "computed meanwhile"
            # A kill between the publication and the clean-up leaves the work folder behind, checkpoints and all.
            shutil.rmtree(folder, ignore_errors=True)
            return StageOutcome(ref=found.ref, how="cached", reason=why, seconds=began - asked)
        with disk_errors(store.root), interruptible() as interruption:
            module = importlib.import_module(f"alignment_core.stages.{spec.stage}")
            require_unedited(spec.components.code)
            config = module.CONFIG.model_validate(spec.config)
            run = StageRun(folder, on_event, interruption, checkpoint_seconds, config.rounding_settings())
            extends = go_on_from_shorter(store, spec.components, folder)
            resumed_from = run.resume()
            if extends:
                run.say(extends)
            inputs = {name: _whole_input(store, name, ref) for name, ref in spec.inputs.items()}
            try:
                with _companions(spec, inputs, folder):
                    module.run(config, inputs, run.output, run)
            finally:
                run.close()
            interruption.patient = True  # what is finished is published first
            keep_state(store, spec.stage, spec.key, run.state)
            draft = ManifestDraft(
                stage=spec.stage,
                key=spec.key,
                label=spec.label,
                components=spec.components,
                parents=spec.inputs,
                settings=spec.config,
                producer=Producer(
                    started=began,
                    seconds=run.seconds(),
                    host=socket.gethostname(),
                    resumed_from_step=resumed_from,
                    annotations=dict(annotations or {}),
                ),
            )
            ref = store.publish(run.output, draft)
            shutil.rmtree(folder)
    how: Literal["ran", "resumed"] = "ran" if resumed_from is None else "resumed"
    return StageOutcome(ref=ref, how=how, reason=reason or _why(found), seconds=time.time() - asked)


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
    """Folder of an input; ValueError if it is not the artifact that the key was made of."""
    found = store.lookup(ref.stage, ref.key)
    if found.ref != ref:
        why = found.reason or ("there is no such artifact" if found.ref is None else "its content is another")
        raise ValueError(f"input {name} ({ref.stage}/{ref.key[:12]}) cannot be used: {why}. Run the study to repair it")
    return store.path(ref)


def _why(found: Lookup) -> str:
    return found.reason or "no such artifact yet"
