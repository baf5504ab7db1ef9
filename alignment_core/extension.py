"""A longer GRPO run goes on from where a shorter one of the same settings ended.

At a constant learning rate nothing in a step depends on how many follow, so 200 steps and 200 more are the run of
400, bit for bit. That takes the training state after the last step: weights and both moments in float32, 12 bytes per
parameter (18.5 GB at 1.5B). It is no part of the artifact but lies beside it, and may be removed at any time:

    STORE/.states/<stage>-<key>/    a sealed checkpoint of the last step
"""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignment_core.checkpoint_folders import MARKER, complete_checkpoints, find_flaw, seal
from alignment_core.durable import sync_folder, write_durably
from alignment_core.manifest import MANIFEST, RECORD, Components, Manifest
from alignment_core.records import ArtifactRef, Record
from alignment_core.store import Store

EVENTS = f"{RECORD}/events.jsonl"


def state_path(store: Store, stage: str, key: str) -> Path:
    """Where the training state of a finished run lies, if it was kept."""
    return store.root / ".states" / f"{stage}-{key}"


def keep_state(store: Store, stage: str, key: str, staged: Path) -> None:
    """Keep what a stage left in `staged`, if anything, as the training state of the artifact it is about to publish."""
    if not staged.is_dir():
        return
    seal(staged, {})
    target = state_path(store, stage, key)
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    staged.rename(target)
    sync_folder(target.parent)


class Shorter(Record):
    """A finished run that differs in its number of steps alone."""

    ref: ArtifactRef
    label: str
    steps: int
    seconds: float
    has_state: bool


def find_shorter(store: Store, components: Components) -> Shorter | None:
    """The longest whole one among the shorter runs of the same settings, inputs and code, those with state first."""
    wanted = _without_steps(components)
    if wanted is None:
        return None
    found = []
    for path in (store.root / components.stage).glob(f"*/{MANIFEST}"):
        with suppress(FileNotFoundError, ValidationError):
            manifest = Manifest.model_validate_json(path.read_bytes())
            steps = _steps(manifest.components)
            if steps < _steps(components) and _without_steps(manifest.components) == wanted:
                found.append(_describe(store, manifest, steps))
    for one in sorted(found, key=lambda one: (one.has_state, one.steps), reverse=True):
        if store.lookup(one.ref.stage, one.ref.key).ref is not None:
            return one
    return None


def go_on_from_shorter(store: Store, components: Components, work: Path) -> str:
    """Give a work folder that has no checkpoint yet the state and the record of a shorter run, if there is one.

    The record then also has the validation point with which the shorter run ended. Returns what to tell whoever
    watches; empty if there is nothing to tell.
    """
    if complete_checkpoints(work / "checkpoints"):
        return ""
    shorter = find_shorter(store, components)
    if shorter is None:
        return ""
    kept = state_path(store, shorter.ref.stage, shorter.ref.key)
    flaw = find_flaw(kept) if shorter.has_state else "it was not kept, or was removed"
    if flaw:
        return f"{shorter.label} has {shorter.steps} of these steps, but not its training state ({flaw}): from step 0"
    _seed(store, shorter, _steps(components), work)
    return f"goes on from step {shorter.steps}, where {shorter.label} ended"


def _seed(store: Store, shorter: Shorter, total: int, work: Path) -> None:
    """Record first, then the checkpoint: staged, its marker last, then renamed."""
    artifact, kept = store.path(shorter.ref), state_path(store, shorter.ref.stage, shorter.ref.key)
    events = work / "output" / EVENTS
    events.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in (artifact / EVENTS).read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if "total" in line:
            line["total"] = total
    write_durably(events, "".join(json.dumps(line) + "\n" for line in lines))
    staging = work / "checkpoints" / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for path in kept.iterdir():
        if path.name != MARKER:
            _share(path, staging / path.name)
    state = json.loads((kept / "state.json").read_text(encoding="utf-8"))
    write_durably(staging / "state.json", json.dumps({**state, "total": total}))
    marker = {"step": shorter.steps, "event_bytes": events.stat().st_size, "seconds": shorter.seconds}
    seal(staging, marker)
    staging.rename(work / "checkpoints" / f"{shorter.steps:08d}")


def _share(source: Path, target: Path) -> None:
    """One copy on disk where the file system can do that; the small files that change are replaced, never edited."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _describe(store: Store, manifest: Manifest, steps: int) -> Shorter:
    kept = state_path(store, manifest.stage, manifest.key)
    has_state = (kept / MARKER).is_file()
    return Shorter(
        ref=manifest.ref(), label=manifest.label, steps=steps, seconds=manifest.producer.seconds, has_state=has_state
    )


def _steps(components: Components) -> int:
    return int(components.config.get("grpo", {}).get("n_grpo_steps", 0))


def _without_steps(components: Components) -> dict[str, Any] | None:
    """What two runs that extend each other have in common; None for stages and schedules that cannot be extended."""
    grpo = components.config.get("grpo", {})
    if components.stage != "grpo" or grpo.get("optimizer", {}).get("schedule") != "constant":
        return None
    same = {name: value for name, value in grpo.items() if name != "n_grpo_steps"}
    return {**components.model_dump(), "config": {**components.config, "grpo": same}}
