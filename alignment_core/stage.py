"""One stage of a study: its key, its work directory, its record, its checkpoints, its publication.

`run_stage` is the whole of it. A stage kind is a module `alignment_core.stages.<kind>` with `CONFIG` (its
settings class) and `run(config, inputs, output, run)`. Prefect and MLflow are not needed here.
"""

import fcntl
import importlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from alignment_core.config_base import Config
from alignment_core.disk import disk_errors
from alignment_core.extension import go_on_from_shorter
from alignment_core.fingerprint import require_unedited, stage_fingerprint
from alignment_core.interruption import Interrupted, Interruption, interruptible
from alignment_core.operation import checkpoint_period, computed_on, differing
from alignment_core.records import ArtifactRef, Record
from alignment_core.retention import checkpoints_to_keep
from alignment_core.store import (
    RECORD,
    Components,
    Lookup,
    ManifestDraft,
    Producer,
    Store,
    sync_file,
    sync_folder,
    write_durably,
)

EVENTS = "events.jsonl"


class Event(Record):
    """One line of a stage's own record."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a loss that is not a number must not break the record

    kind: Literal["point", "rows", "say", "checkpoint"]
    """`checkpoint`: everything before it is durable and will not be taken back by a resume."""
    step: int
    time: float
    """Unix time, seconds."""
    metrics: dict[str, float] = Field(default_factory=dict)
    total: int | None = None
    """Steps expected in all, where known."""
    name: str = ""
    """Name of the table of a `rows` event; text of a `say` event."""
    rows: list[dict[str, Any]] = Field(default_factory=list)


OnEvent = Callable[[Event], None]


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

    One process works on a key at a time (flock, freed by the kernel on death); a second one waits and
    shares the result. A run that was cut off goes on from its last complete checkpoint. SIGTERM and Ctrl-C
    make it save at its next step boundary and stop (`alignment_core.interruption`).
    Raises OSError, with the remedy, if the disk is full.
    """
    asked = time.time()
    folder = store.root / ".work" / f"{spec.stage}-{spec.key}"
    with _exclusive(store.root / ".locks" / f"{spec.stage}-{spec.key}.lock"):
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
            run = StageRun(folder, on_event, interruption, checkpoint_seconds)
            extends = go_on_from_shorter(store, spec.components, folder)
            resumed_from = run.resume()
            if extends:
                run.say(extends)
            inputs = {name: store.path(ref) for name, ref in spec.inputs.items()}
            try:
                module.run(module.CONFIG.model_validate(spec.config), inputs, run.output, run)
            finally:
                run.close()
            interruption.patient = True  # what is finished is published first
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


def _why(found: Lookup) -> str:
    return found.reason or "no such artifact yet"


class StageRun:
    """The work directory of a stage under way; what a stage sees of the world (a `RunContext`).

    WORK/output/            what will be published (its record/ subfolder holds events.jsonl)
    WORK/checkpoints/N/     complete checkpoints, marker `complete.json` written before the rename
    """

    def __init__(
        self,
        folder: Path,
        on_event: OnEvent | None = None,
        interruption: Interruption | None = None,
        checkpoint_seconds: float | None = None,
    ) -> None:
        self.folder = folder
        self._interruption = interruption or Interruption()
        self._period = checkpoint_period() if checkpoint_seconds is None else checkpoint_seconds
        self.output = folder / "output"
        self._checkpoints = folder / "checkpoints"
        self._events_path = self.output / RECORD / EVENTS
        self._on_event = on_event
        self._saved_at = time.monotonic()
        self._began = time.monotonic()
        self._seconds_before = 0.0
        self._validation: dict[str, float] | None = None
        """Step and accuracy of the last validation; a checkpoint's marker has it."""

    def resume(self) -> int | None:
        """Bring the folder to its last complete checkpoint, or to empty; return the checkpoint's step."""
        checkpoint = self.latest_checkpoint()
        length, step = 0, None
        marker: dict[str, Any] = {}
        if checkpoint is not None:
            marker = json.loads((checkpoint / "complete.json").read_text(encoding="utf-8"))
            length, step = marker["event_bytes"], marker["step"]
            self._seconds_before = marker.get("seconds", 0.0)
            self._validation = marker.get("validation")
            if not self._events_path.is_file() or self._events_path.stat().st_size < length:
                # Only a hand, or a disk that lied about fsync, can do this; the points would be lost for ever.
                shutil.rmtree(self._checkpoints)
                marker, length, step = {}, 0, None
                self._seconds_before, self._validation = 0.0, None
        for path in self.output.glob("*"):
            if path.name != RECORD:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._events_path.parent.mkdir(parents=True, exist_ok=True)
        self._events = self._events_path.open("ab")
        self._events.truncate(length)
        if step is not None:
            self._replay(step)
            if changed := differing(marker.get("computed_on", {})):
                self.say(f"goes on under another {changed}: close to the uninterrupted run, not bit-equal to it")
        return step

    def _replay(self, step: int) -> None:
        """Tell the listener what is kept, in case whoever listened last died before hearing it."""
        if self._on_event is None:
            return
        for event in read_events(self.output):
            self._on_event(event)
        self._on_event(Event(kind="checkpoint", step=step, time=time.time()))

    def seconds(self) -> float:
        """Time spent so far, that of the attempts up to the checkpoint this one went on from included."""
        return self._seconds_before + time.monotonic() - self._began

    def close(self) -> None:
        """Make the record durable; called once, when the stage has ended, well or not."""
        with self._events:
            self._events.flush()
            os.fsync(self._events.fileno())

    def emit(self, step: int, metrics: Mapping[str, float], total: int | None = None) -> None:
        """Record one point."""
        if "eval/accuracy" in metrics:
            self._validation = {"step": step, "accuracy": metrics["eval/accuracy"]}
        self._append(Event(kind="point", step=step, time=time.time(), metrics=dict(metrics), total=total))

    def emit_rows(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Record a table of samples."""
        self._append(Event(kind="rows", step=step, time=time.time(), name=name, rows=[dict(row) for row in rows]))

    def say(self, text: str) -> None:
        """Record a line for whoever watches."""
        self._append(Event(kind="say", step=0, time=time.time(), name=text))

    def _append(self, event: Event) -> None:
        self._events.write(event.model_dump_json(exclude_defaults=True).encode() + b"\n")
        self._tell(event)

    def _tell(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def checkpoint_due(self) -> bool:
        """Whether the period has passed since the last checkpoint, or the start, or a signal asks to stop."""
        self._interruption.patient = True  # steps have boundaries here, so a signal can wait for the next one
        return self._interruption.signum is not None or time.monotonic() - self._saved_at >= self._period

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Write to a temporary folder, fsync, mark complete, rename; then drop the others but the best.

        Raises `Interrupted` afterwards if a signal asked the stage to stop.
        """
        staging = self._checkpoints / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            self._fill(staging, step, write)
        except Exception:
            shutil.rmtree(staging, ignore_errors=True)  # on a full disk this room is what is needed next
            raise
        target = self._checkpoints / f"{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
        sync_folder(self._checkpoints)
        complete = self._complete()
        for older in set(complete) - checkpoints_to_keep(complete):
            shutil.rmtree(older)
        self._saved_at = time.monotonic()
        self._tell(Event(kind="checkpoint", step=step, time=time.time()))
        if self._interruption.signum is not None:
            raise Interrupted(self._interruption.signum, f"saved after step {step}")

    def _fill(self, staging: Path, step: int, write: Callable[[Path], None]) -> None:
        """Content, then the marker, each durable before the next."""
        write(staging)
        for path in staging.rglob("*"):
            if path.is_file():
                sync_file(path)
        self._events.flush()
        os.fsync(self._events.fileno())
        length = self._events_path.stat().st_size
        marker = {"step": step, "event_bytes": length, "seconds": self.seconds(), "computed_on": computed_on()}
        marker["validation"] = self._validation
        write_durably(staging / "complete.json", json.dumps(marker))

    def latest_checkpoint(self) -> Path | None:
        """Folder of the newest complete checkpoint, if any."""
        complete = self._complete()
        return complete[-1] if complete else None

    def _complete(self) -> list[Path]:
        return sorted(path.parent for path in self._checkpoints.glob("[0-9]*/complete.json"))


def read_events(artifact: Path) -> Iterator[Event]:
    """The record of a finished stage, line by line."""
    with (artifact / RECORD / EVENTS).open("r", encoding="utf-8") as file:
        for line in file:
            yield Event.model_validate_json(line)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
