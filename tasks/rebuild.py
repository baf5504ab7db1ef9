"""MLflow made anew from the store alone: the journal's study runs, each stage's own record, its tables and files.

A local database is built beside the old one and takes its place by one rename, so that a rebuild that is cut off
changes nothing. On a tracking server the old runs are deleted first. Either way only runs of ours are replaced.
"""

import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from alignment_core.durable import write_durably
from alignment_core.journal import PastRun, past_runs, undisturbed
from alignment_core.manifest import Manifest
from alignment_core.store import Store
from alignment_core.store_access import open_store
from tasks.session import Session
from tasks.tracking import KIND_TAG, connect, run_tags, tracking_uri

SETTLED = ".root"
"""File of the store that says where the root lay when MLflow was last right about it."""

UNKNOWN_STUDY = "recovered"
"""Experiment of artifacts that no journal tells of: those of versions without one, and of stages run by hand."""


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild wrote."""

    studies: int
    runs: int
    stages: int

    def __str__(self) -> str:
        return f"{self.studies} experiments, {self.runs} study runs, {self.stages} stage runs"


def rebuild(root: Path, say: Callable[[str], None] = lambda _: None) -> Rebuilt:
    """Replace what MLflow shows of this root by what the store holds.

    Raises ValueError if a study run is under way, or if MLflow holds runs that are not ours.
    """
    store = open_store(root)
    with undisturbed(store.root):
        return replace(root, store, say)


def replace(root: Path, store: Store, say: Callable[[str], None]) -> Rebuilt:
    """The rebuild itself; the caller sees to it that no study run is under way."""
    uri = tracking_uri(root)
    if not uri.startswith("sqlite:///"):
        _remove_own_runs(connect(uri), {run.began.study for run in past_runs(store.root)} | {UNKNOWN_STUDY})
        return _write(root, store, uri, say)
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    if database.is_file():
        _own_runs(connect(uri), None)
    fresh = database.with_name(f"rebuilt-{uuid.uuid4().hex[:8]}.db")
    try:
        rebuilt = _write(root, store, f"sqlite:///{fresh}", say)
        for companion in ("-wal", "-shm", "-journal"):
            database.with_name(database.name + companion).unlink(missing_ok=True)
        os.replace(fresh, database)
    finally:
        fresh.unlink(missing_ok=True)
    _remove_strays(root / "mlruns" / "artifacts", connect(uri))
    return rebuilt


def settle(root: Path, store: Store, say: Callable[[str], None]) -> None:
    """Notice that a root was moved or copied, and rebuild its MLflow, which would write into the old place.

    A root says where it lies in `data/store/.root`. With a tracking server nothing depends on the place.
    """
    note = store.root / SETTLED
    before = note.read_text(encoding="utf-8").strip() if note.is_file() else _old_place(root)
    if before == str(root):
        return
    database = root / "mlruns" / "mlflow.db"
    if before and database.is_file() and tracking_uri(root).startswith("sqlite:"):
        say(f"{root} was moved or copied from {before}: MLflow is rebuilt from the store, into the new place")
        with undisturbed(store.root, patience=600):
            if not note.is_file() or note.read_text(encoding="utf-8").strip() != str(root):
                say(f"MLflow: {replace(root, store, lambda _: None)}")
                write_durably(note, str(root))
        return
    if before:
        say(f"{root} was moved or copied from {before}")
    write_durably(note, str(root))


def _old_place(root: Path) -> str:
    """For roots of versions that kept no note: a place outside the root that MLflow's experiments point to, or ""."""
    database = root / "mlruns" / "mlflow.db"
    if not database.is_file():
        return ""
    inside = (root / "mlruns").as_uri()
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        query = "select artifact_location from experiments where name != 'Default' and artifact_location like 'file:%'"
        places = [str(row[0]) for row in connection.execute(query)]
    elsewhere = [place for place in places if not place.startswith(inside)]
    return unquote(urlparse(elsewhere[0]).path).partition("/mlruns/")[0] if elsewhere else ""


def _own_runs(client: Any, studies: set[str] | None) -> list[Any]:
    """Active runs of ours in these experiments (None: all); ValueError if there are others beside them."""
    own = []
    for experiment in client.search_experiments():
        if studies is not None and experiment.name not in studies:
            continue
        for run in client.search_runs([experiment.experiment_id], max_results=5000):
            if KIND_TAG not in run.data.tags:
                raise ValueError(
                    f"MLflow's experiment {experiment.name!r} holds the run {run.info.run_name!r} "
                    f"({run.info.run_id}), which is not of this root: nothing was changed. Move that run elsewhere or "
                    "delete it, or set MLFLOW_TRACKING_URI to another database, then run the command again"
                )
            own.append(run)
    return own


def _remove_own_runs(client: Any, studies: set[str]) -> None:
    for run in _own_runs(client, studies):
        client.delete_run(run.info.run_id)
    experiments = [one.experiment_id for one in client.search_experiments() if one.name in studies]
    for model in _models(client, experiments):
        client.delete_logged_model(model.model_id)


def _models(client: Any, experiments: list[str]) -> list[Any]:
    """The LoggedModels of ours in these experiments."""
    found, token = [], None
    while experiments:
        page = client.search_logged_models(experiments, page_token=token)
        found += [model for model in page if KIND_TAG in model.tags]
        token = page.token
        if not token:
            break
    return found


def _write(root: Path, store: Store, uri: str, say: Callable[[str], None]) -> Rebuilt:
    runs = past_runs(store.root)
    manifests = _manifests(store, runs)
    made = _producers(manifests, runs)
    shown: dict[str, set[str]] = {run.began.study: set() for run in runs}
    for run in runs:
        stages = _stages_to_show(run, manifests, made[run.began.run], shown[run.began.study])
        say(f"{run.began.name}: {len(stages)} stages")
        _write_run(root, store, uri, run, stages)
        shown[run.began.study] |= {manifest.key for manifest in stages}
    orphans = [manifests[key] for key in made[""]]
    if orphans:
        say(f"{len(orphans)} stages that no study run tells of, under {UNKNOWN_STUDY!r}")
        session = Session(root, UNKNOWN_STUDY, "", {}, uri=uri, parent="")
        for manifest in orphans:
            session.show_stage(manifest)
        shown[UNKNOWN_STUDY] = set(made[""])
    return Rebuilt(len(shown), len(runs), sum(map(len, shown.values())))


def _manifests(store: Store, runs: list[PastRun]) -> dict[str, Manifest]:
    """Those of the root, and those that only a shared store has but a study run of the root reached; oldest first."""
    found = {one.key: one for one in store.manifests()}
    if store.shared is not None:
        for line in (line for run in runs for line in run.reached if line.key not in found):
            with suppress(FileNotFoundError, ValueError):
                found[line.key] = store.manifest(line.stage, line.key)
    return dict(sorted(found.items(), key=lambda item: item[1].producer.started))


def _producers(manifests: Mapping[str, Manifest], runs: list[PastRun]) -> dict[str, list[str]]:
    """Id of a study run -> keys it computed, in order; under "" those that no run of the journal tells of."""
    known = {run.began.run for run in runs}
    first = {line.key: run.began.run for run in reversed(runs) for line in run.reached}
    made: dict[str, list[str]] = {run: [] for run in (*known, "")}
    for key, manifest in manifests.items():
        noted = manifest.producer.annotations.get("run", "")
        made[noted if noted in known else first.get(key, "")].append(key)
    return made


def _stages_to_show(
    run: PastRun, manifests: Mapping[str, Manifest], made: list[str], shown: set[str]
) -> list[Manifest]:
    """What a study run computed, and what it found that its study has not `shown` yet, under the run's own labels."""
    labels = {line.key: line.label for line in reversed(run.reached) if line.how != "asked"}  # the first names it
    keys = [*made, *(key for key in manifests if key in labels and key not in {*made, *shown})]
    return [manifests[key].model_copy(update={"label": labels.get(key, manifests[key].label)}) for key in keys]


def _write_run(root: Path, store: Store, uri: str, run: PastRun, manifests: list[Manifest]) -> None:
    """One study run: its stages, then itself. One that shows nothing new has no run in MLflow, as ever."""
    computed = manifests or any(line.how in {"ran", "resumed"} for line in run.reached)
    if not computed and run.ended is not None and run.ended.status == "FINISHED":
        return
    began, ended = run.began, run.ended
    session = Session(root, began.study, began.name, run_tags(began), began.settings, uri, began.time)
    for manifest in manifests:
        session.show_stage(manifest)
    outcomes = {line.label: (line.how, line.key) for line in run.reached}
    files = [path for name in (ended.files if ended else []) if (path := store.root / name).exists()]
    session.close_study(
        ended.status if ended else "KILLED",
        dict(ended.metrics) if ended else {},
        files,
        outcomes,
        ended.time if ended else run.path.stat().st_mtime,
    )


def _remove_strays(artifacts: Path, client: Any) -> None:
    """Remove the files of runs that the new database does not know."""
    known = set()
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id], max_results=5000):
            known.add(Path(unquote(urlparse(run.info.artifact_uri).path)).parent)
    for folder in artifacts.glob("*/*"):
        if folder.is_dir() and folder not in known:
            shutil.rmtree(folder)
