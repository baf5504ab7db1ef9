"""A stage under way: its work folder, its record, its checkpoints; what it saved is what it goes on from."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment_core.checkpoint_folders import complete_checkpoints, crc32, find_flaw, read_marker, seal
from alignment_core.durable import sync_folder, write_durably
from alignment_core.events import EVENTS, Event, OnEvent, read_events
from alignment_core.interruption import Interrupted, Interruption
from alignment_core.manifest import RECORD
from alignment_core.operation import checkpoint_period, computed_on, differing
from alignment_core.retention import checkpoints_to_keep
from alignment_core.shared_run import SharedRun, latest_step


class StageRun:
    """The work directory of a stage under way; what a stage sees of the world (a `RunContext`).

    WORK/output/            what will be published (its record/ subfolder holds events.jsonl)
    WORK/state/             what will be kept beside it (alignment_core.extension)
    WORK/checkpoints/N/     complete checkpoints, marker `complete.json` written before the rename
    WORK.NAME.json          samples set aside: beside the folder, which the next attempt brings back to its checkpoint
    """

    def __init__(
        self,
        folder: Path,
        on_event: OnEvent | None = None,
        interruption: Interruption | None = None,
        checkpoint_seconds: float | None = None,
        rounding: Mapping[str, Any] | None = None,
        shared: SharedRun | None = None,
    ) -> None:
        """`rounding`: settings in no key that a bit-equal resume must find again. shared: if other hosts may go on."""
        self.folder = folder
        self._shared = shared
        self._rounding = dict(rounding or {})
        self._interruption = interruption or Interruption()
        self._period = checkpoint_period() if checkpoint_seconds is None else checkpoint_seconds
        self.output = folder / "output"
        self.state = folder / "state"
        self._checkpoints = folder / "checkpoints"
        self._events_path = self.output / RECORD / EVENTS
        self._on_event = on_event
        self._saved_at = time.monotonic()
        self._began = time.monotonic()
        self._seconds_before = 0.0
        self._validation: dict[str, float] | None = None
        """Step and accuracy of the last validation; a checkpoint's marker has it."""

    def resume(self) -> int | None:
        """Bring the folder to its last complete checkpoint, or to empty; return the checkpoint's step.

        That is one of another host, if it got further (`alignment_core.shared_checkpoints`).
        """
        told = self._drop_damaged()
        if self._shared is not None:
            self._shared.fetch_further(latest_step(self.folder), told.append)
        checkpoint = self.latest_checkpoint()
        marker: dict[str, Any] = {"event_bytes": 0, "step": None} if checkpoint is None else read_marker(checkpoint)
        step: int | None = marker["step"]
        self._seconds_before = marker.get("seconds", 0.0)
        self._validation = marker.get("validation")
        for path in self.output.glob("*"):
            if path.name != RECORD:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._events_path.parent.mkdir(parents=True, exist_ok=True)
        self._events = self._events_path.open("ab")
        self._events.truncate(marker["event_bytes"])
        for line in told:
            self.say(line)
        if step is not None:
            self._replay(step)
            if changed := differing(marker.get("computed_on", {}), computed_on(self._rounding)):
                self.say(f"goes on under another {changed}: close to the uninterrupted run, not bit-equal to it")
        return step

    def _drop_damaged(self) -> list[str]:
        """Remove checkpoints that no longer hold what was written; only a hand or a failing disk does this.

        Newest first, up to the first whole one. Returns what to tell whoever watches.
        """
        told = []
        for checkpoint in reversed(complete_checkpoints(self._checkpoints)):
            flaw = find_flaw(checkpoint) or self._lost_record(read_marker(checkpoint))
            if not flaw:
                break
            shutil.rmtree(checkpoint)
            told.append(f"the checkpoint of step {int(checkpoint.name)} is damaged and was removed: {flaw}")
        return told

    def _lost_record(self, marker: Mapping[str, Any]) -> str:
        """What is wrong with the record that a checkpoint covers, in words."""
        length = marker["event_bytes"]
        size = self._events_path.stat().st_size if self._events_path.is_file() else 0
        if size < length:
            return f"{EVENTS} has {size} bytes, not the {length} it covers"
        expected = marker.get("event_crc")
        return f"{EVENTS} was changed" if expected not in (None, crc32(self._events_path, length)) else ""

    def _replay(self, step: int) -> None:
        """Tell the listener what is kept, in case whoever listened last died before hearing it."""
        if self._on_event is None:
            return
        for event in read_events(self.output):
            if event.kind != "say":  # was said then
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
        """Record one point. Raises `Superseded` if another host computes the stage by now; so do the others."""
        self._at_boundary(step)
        if "eval/accuracy" in metrics:
            self._validation = {"step": step, "accuracy": metrics["eval/accuracy"]}
        self._append(Event(kind="point", step=step, time=time.time(), metrics=dict(metrics), total=total))

    def emit_rows(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Record a table of samples."""
        self._at_boundary(step)
        self._append(Event(kind="rows", step=step, time=time.time(), name=name, rows=[dict(row) for row in rows]))

    def set_aside(self, name: str, step: int, rows: Sequence[Mapping[str, object]]) -> str:
        """Write samples beside the work folder; returns the file's path."""
        path = self.folder.with_name(f"{self.folder.name}.{name}.json")
        write_durably(path, json.dumps({"step": step, "rows": rows}))
        return str(path)

    def say(self, text: str) -> None:
        """Record a line for whoever watches."""
        self._append(Event(kind="say", step=0, time=time.time(), name=text))

    def _at_boundary(self, step: int) -> None:
        """Nothing more is recorded or saved once another host has taken over."""
        if self._shared is not None:
            for line in self._shared.at_boundary(step):
                self.say(line)

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
        self._at_boundary(step)
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
        complete = complete_checkpoints(self._checkpoints)
        for older in set(complete) - checkpoints_to_keep(complete):
            shutil.rmtree(older)
        self._saved_at = time.monotonic()
        self._at_boundary(step)  # the writing may have taken long, or been stopped
        self._tell(Event(kind="checkpoint", step=step, time=time.time()))
        if self._shared is not None:
            line = self._shared.saved(target, self._events_path, last=self._interruption.signum is not None)
            if line:
                self.say(line)
        if self._interruption.signum is not None:
            raise Interrupted(self._interruption.signum, f"saved after step {step}")

    def _fill(self, staging: Path, step: int, write: Callable[[Path], None]) -> None:
        """Content and record, then the marker, each durable before the next."""
        write(staging)
        self._events.flush()
        os.fsync(self._events.fileno())
        length = self._events_path.stat().st_size
        marker = {
            "step": step,
            "event_bytes": length,
            "seconds": self.seconds(),
            "computed_on": computed_on(self._rounding),
        }
        marker |= {"event_crc": crc32(self._events_path, length), "validation": self._validation}
        seal(staging, marker)

    def state_folder(self) -> Path | None:
        """WORK/state, empty of what an attempt that was cut off left there."""
        shutil.rmtree(self.state, ignore_errors=True)
        return self.state

    def latest_checkpoint(self) -> Path | None:
        """Folder of the newest complete checkpoint, if any."""
        complete = complete_checkpoints(self._checkpoints)
        return complete[-1] if complete else None
