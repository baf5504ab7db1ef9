"""What may be removed from a store, and which checkpoints of a stage under way stay.

A shared store behind this one is not touched (`alignment_core.shared_upkeep`): what goes here comes back from there.

An artifact stays if a kept study run reached it, if it is young, or if anything that stays was made from it. Kept
are the latest run of every study and flow, the latest that finished, and all of the last days.
"""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from alignment_core.checkpoint_folders import read_marker
from alignment_core.journal import PastRun, past_runs, undisturbed
from alignment_core.locks import alone
from alignment_core.manifest import Manifest
from alignment_core.records import Record
from alignment_core.store import Store

DAY = 86_400.0


Kind = Literal["artifact", "training state", "unfinished publication", "work folder", "error log", "download"]


class Item(Record):
    """One thing to remove."""

    kind: Kind
    stage: str
    key: str
    path: str
    """Within the store."""
    bytes: int
    what: str
    """For people: the label, and why it goes."""


def collect(store: Store, keep_days: float, dry_run: bool, states: bool = False) -> list[Item]:
    """Remove what nothing needs; return it, each item once. A dry run returns the same and removes nothing.

    states: also every training state that was kept for a longer run.
    Raises ValueError if a study run is under way, whose artifacts nobody can tell yet.
    """
    with undisturbed(store.root):
        removed = []
        for item in plan(store, keep_days, time.time(), states):
            with alone(store.root / ".locks" / f"{item.stage}-{item.key}.lock") as nobody_else:
                if nobody_else:
                    removed.append(item)
                    if not dry_run:
                        _remove(store, item)
        return removed


def plan(store: Store, keep_days: float, now: float, states: bool = False) -> Iterator[Item]:
    """What to remove at time `now` (Unix seconds): artifacts, training states, leftovers.

    Newest first, so that a removal that is cut off leaves no artifact without what it was made from.
    """
    manifests = list(store.manifests())
    horizon = now - keep_days * DAY
    runs = past_runs(store.root)
    asked = {line.key for run in kept_runs(runs, horizon) for line in run.reached}
    answering = {one.kept.key for one in store.acceptances() if one.components.key() in asked}
    young = {one.key for one in manifests if one.producer.started + one.producer.seconds >= horizon}
    kept = with_ancestors(manifests, asked | answering | young)
    for manifest in reversed(manifests) if runs else []:  # without any record of use nothing can be called unused
        if manifest.key not in kept:
            what = f"{manifest.label}: no kept study run reaches it"
            yield _item(store, "artifact", manifest.stage, manifest.key, store.folder(manifest.ref()), what)
    for path in sorted((store.root / ".states").glob("*-*")):
        stage, _, key = path.name.rpartition("-")
        if states or (runs and key not in kept) or path.stat().st_mtime < horizon:
            yield _item(store, "training state", stage, key, path, "only a run of more steps would need it")
    yield from _leftovers(store, {one.key for one in manifests}, asked, horizon)


def kept_runs(runs: Sequence[PastRun], horizon: float) -> list[PastRun]:
    """Runs since `horizon`, and of each study and flow the latest and the latest that finished."""
    latest: dict[tuple[str, object, bool], PastRun] = {}
    for run in runs:
        finished = run.ended is not None and run.ended.status == "FINISHED"
        latest[run.began.study, run.began.request.get("flow"), False] = run
        if finished:
            latest[run.began.study, run.began.request.get("flow"), True] = run
    last = set(latest.values())
    return [run for run in runs if run in last or (run.ended.time if run.ended else run.began.time) >= horizon]


def with_ancestors(manifests: Iterable[Manifest], keys: set[str]) -> set[str]:
    """`keys` and the keys of everything they were made from."""
    parents = {one.key: {ref.key for ref in one.parents.values()} for one in manifests}
    found: set[str] = set()
    pending = list(keys)
    while pending:
        key = pending.pop()
        if key not in found:
            found.add(key)
            pending.extend(parents.get(key, ()))
    return found


def _leftovers(store: Store, published: set[str], asked: set[str], horizon: float) -> Iterator[Item]:
    """What kills left behind: half publications, work folders and error logs of published or abandoned keys."""
    for path in sorted(store.root.glob("[!.]*/*.tmp-*")):
        key = path.name.partition(".tmp-")[0]
        yield _item(store, "unfinished publication", path.parent.name, key, path, "left by a kill")
    for path in sorted([*(store.root / ".incoming").glob("*-*"), *store.root.glob(".shared/*/records/*-*")]):
        if path.stat().st_mtime < horizon:
            stage, _, key = path.name.rpartition("-")
            yield _item(store, "download", stage, key, path, "a copy, whole or not, from the shared store")
    for path in sorted((store.root / ".work").glob("*-*")):
        stage, _, key = path.name.partition(".")[0].rpartition("-")
        if key in published:
            what = "its artifact is published"
        elif key not in asked and path.stat().st_mtime < horizon:
            what = "no kept study run asks for its key"
        else:
            continue
        yield _item(store, "work folder" if path.is_dir() else "error log", stage, key, path, what)


def _item(
    store: Store,
    kind: Kind,
    stage: str,
    key: str,
    path: Path,
    what: str,
) -> Item:
    inside = path.relative_to(store.root).as_posix()
    return Item(kind=kind, stage=stage, key=key, path=inside, bytes=size_of(path), what=what)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
    return sum(file.stat().st_size for file in files)


def _remove(store: Store, item: Item) -> None:
    """Rename first: an artifact that a kill caught half removed must not look whole."""
    path = store.root / item.path
    if path.is_file():
        path.unlink()
        return
    doomed = path
    if ".tmp-" not in path.name and item.kind == "artifact":
        doomed = path.with_name(f"{path.name}.tmp-removed{os.getpid()}")
        path.rename(doomed)
    shutil.rmtree(doomed)
    if item.kind == "artifact":
        store.verified_path(item.stage, item.key).unlink(missing_ok=True)
        (store.root / ".prefect" / item.stage / item.key).unlink(missing_ok=True)


def checkpoints_to_keep(complete: Sequence[Path]) -> set[Path]:
    """Of a stage's complete checkpoints, oldest first: the last, and the one of the best validation accuracy.

    The accuracy is that of the last validation before the checkpoint (`validation` in its marker); the later one
    wins a tie.
    """
    if not complete:
        return set()
    scored = [(accuracy, index) for index, path in enumerate(complete) if (accuracy := _accuracy(path)) is not None]
    best = {complete[max(scored)[1]]} if scored else set()
    return {complete[-1]} | best


def _accuracy(checkpoint: Path) -> float | None:
    try:
        validation = read_marker(checkpoint).get("validation")
    except ValueError:  # a spoiled marker; a resume would find it out and remove it
        return None
    return float(validation["accuracy"]) if validation else None
