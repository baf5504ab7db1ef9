"""Where a study runs: root folder, store, tracker, and whoever watches."""

import logging
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prefect import runtime

from alignment_core.failures import HostError
from alignment_core.interruption import exit_code_of
from alignment_core.journal import PastRun, RunJournal, begin_run, dead_runs, keys_shown
from alignment_core.planning import Planner
from alignment_core.stage import StageOutcome
from alignment_core.stage_config import AcceptedStage
from alignment_core.store import Store
from alignment_core.store_access import open_store
from tasks.dispatch import Dispatcher
from tasks.pools import GPU_POOLS, Executor, own_pool
from tasks.prefect_view import link_to_mlflow, prefect_url
from tasks.progress import Listener, LogListener
from tasks.rebuild import settle
from tasks.recovery import crash_flow_run, send_unsent
from tasks.roots import require_writable, root_folder
from tasks.side_by_side import run_side_by_side
from tasks.tracker import Tracker, TrackingError
from tasks.tracking import run_tags

logger = logging.getLogger("alignflow")

HURRY = 5.0
"""Seconds that a study which a signal stops waits for an MLflow that does not answer."""


@dataclass
class Workspace:
    """What every task needs beside its own settings."""

    root: Path
    store: Store
    tracker: Tracker
    listener: Listener
    outcomes: dict[str, StageOutcome] = field(default_factory=dict)
    """By stage label, in the order in which they ended."""
    accepted: dict[str, AcceptedStage] = field(default_factory=dict)
    """By stage label, those that stand although their code changed."""
    failures: dict[str, Exception] = field(default_factory=dict)
    """By member of the study: what kept it from its end, while the rest went on."""
    final_metrics: dict[str, float] = field(default_factory=dict)
    """For the parent run in MLflow."""
    final_artifacts: list[Path] = field(default_factory=list)
    journal: RunJournal | None = None
    """Which artifacts this study run stands on, while it is under way."""
    shown: set[str] = field(default_factory=set)
    """Keys of the stages that the tracker shows under this study already."""
    planner: Planner | None = None
    """Answers for every stage in a workspace that only plans; None in one that computes."""
    study: str = ""
    model: str = ""
    """Short name of the model that the study is about, for the names of its runs."""
    dispatcher: Dispatcher | None = None
    """Asks workers for the stages that need torch; None where all run in this process."""
    asked_with: dict[str, str] = field(default_factory=dict)
    """The annotations of the study that asked a worker for a stage."""

    def annotations(self) -> dict[str, str]:
        """What an artifact's manifest says of the study run that computed it."""
        if self.journal is None:
            return self.asked_with
        began = self.journal.began
        sha = began.tags.get("alignflow.git_sha")
        return {"run": began.run, "study": began.study, **({"git_sha": sha} if sha else {})}

    def side_by_side(self, calls: Sequence[Callable[[], object]]) -> None:
        """Make calls that do not need each other: at the same time where workers compute, else one after another."""
        if self.dispatcher is not None:
            return run_side_by_side(calls, self.dispatcher.stopping)
        for call in calls:
            call()

    def reached(self, label: str, stage: str, key: str, how: Literal["asked", "cached", "ran", "resumed"]) -> None:
        """Note in the journal that this study run stands on an artifact."""
        if self.journal is not None:
            self.journal.reached(label, stage, key, how)


_listener: Listener = LogListener()


def watch_with(listener: Listener) -> None:
    """Let `listener` hear of every stage of the workspaces this process opens from now on."""
    global _listener
    _listener = listener


@contextmanager
def open_workspace(
    root: str | None,
    study: str,
    run_name: str,
    request: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    executor: Executor = "local",
    model: str = "",
) -> Iterator[Workspace]:
    """The workspace under `root` (default: `root_folder`); its MLflow run ends with the block.

    What a kill left open there is closed first. request: flow, preset and overrides, for the journal; settings: all
    of the study's, for the journal and the tracker. executor: whether workers compute the stages that need torch; not
    if this flow run has a GPU of its own.
    Raises ValueError with the remedy if the root cannot be written, or no server is set where workers are asked.
    """
    folder = root_folder(root)
    dispatcher = Dispatcher() if executor == "work-pool" and own_pool() not in GPU_POOLS else None
    require_writable(folder)
    store = open_store(folder)
    settle(folder, store, logger.warning)
    dead, flow_run = dead_runs(store.root), runtime.flow_run.id or ""
    tags = {"alignflow.git_sha": git_sha(), "alignflow.prefect_url": prefect_url()}
    journal = begin_run(store.root, study, run_name, request, tags, flow_run, settings)
    tracker = Tracker(folder, study, run_name, run_tags(journal.began), journal.began.settings, link_to_mlflow)
    workspace = Workspace(
        folder, store, tracker, _listener, journal=journal, study=study, model=model, dispatcher=dispatcher
    )
    workspace.shown = keys_shown(store.root, study)
    shown = False
    try:
        _close_dead(dead, tracker, flow_run)
        yield workspace
        _end(workspace, journal, "FINISHED", workspace.final_artifacts)
        tracker.close()
        shown = True
    except BaseException as error:
        if not shown and not journal.ended:
            stopped = exit_code_of(error) is not None
            _end(workspace, journal, "KILLED" if stopped else "FAILED", workspace.final_artifacts)
            try:
                tracker.close(HURRY if stopped else None)
                shown = True
            except TrackingError as outage:
                error.add_note(str(outage))  # beside the reason why the study failed, not in its place
        raise
    finally:
        workspace.journal = None
        journal.release(shown)


@contextmanager
def open_stage_workspace(
    root: str | None, study: str, parent_run: str, annotations: dict[str, str], listener: Listener
) -> Iterator[Workspace]:
    """The workspace of one stage that a study elsewhere asked for; its MLflow run is nested under `parent_run`.

    There is no journal: the study run is journaled where it runs. If MLflow is away, the rest of the record is sent by
    the next stage of the study that runs under this root.
    Raises HostError with the remedy if this host's root or environment does not do.
    """
    folder = root_folder(root)
    try:
        require_writable(folder)
        store = open_store(folder)
        settle(folder, store, logger.warning)
        tracker = Tracker(folder, study, "", {}, parent_run=parent_run)
    except ValueError as error:
        raise HostError(str(error)) from error
    send_unsent(folder, store, tracker, study)
    try:
        yield Workspace(folder, store, tracker, listener, study=study, asked_with=annotations)
    finally:
        try:
            tracker.close()
        except TrackingError as outage:
            logger.warning("%s", outage)


Status = Literal["FINISHED", "FAILED", "KILLED"]


def _end(workspace: Workspace, journal: RunJournal, status: Status, results: list[Path]) -> None:
    workspace.tracker.study_finished(status, workspace.final_metrics, results, workspace.outcomes)
    files = [path.relative_to(workspace.store.root).as_posix() for path in results]
    journal.end(status, workspace.final_metrics, files)


def _close_dead(dead: list[PastRun], tracker: Tracker, current: str) -> None:
    """Close what study runs whose process died left open: their flow runs, then their runs in MLflow."""
    for run in dead:
        if run.ended is None:
            logger.warning("%s (pid %d) was killed: its runs are closed", run.began.name, run.began.pid)
        if run.began.flow_run and run.began.flow_run != current:  # the same one again is a retry
            crash_flow_run(run.began.flow_run, f"its process (pid {run.began.pid} on {run.began.host}) died")
        tracker.close_killed(run)


def planning_workspace(root: str | None) -> Workspace:
    """A workspace in which nothing is computed and nothing written: each stage is noted in the plan.

    But what the plan has to read and only a shared store has is downloaded: data, no weights.
    """
    folder = root_folder(root)
    store = open_store(folder, remembers=False)
    return Workspace(folder, store, Tracker(folder, "plan", "plan", {}), _listener, planner=Planner(store))


def git_sha() -> str:
    """Commit of the code, `-dirty` if edited; empty outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
