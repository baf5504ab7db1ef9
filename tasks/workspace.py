"""Where a study runs: root folder, store, tracker, and whoever watches."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from alignment_core.stage import StageOutcome
from alignment_core.store import Store
from tasks.progress import Listener, LogListener
from tasks.tracking import Tracker


@dataclass
class Workspace:
    """What every task needs beside its own settings."""

    root: Path
    store: Store
    tracker: Tracker
    listener: Listener
    outcomes: dict[str, StageOutcome] = field(default_factory=dict)
    """By stage label, in the order in which they ended."""
    final_metrics: dict[str, float] = field(default_factory=dict)
    """For the parent run in MLflow."""
    final_artifacts: list[Path] = field(default_factory=list)


_listener: Listener = LogListener()


def watch_with(listener: Listener) -> None:
    """Let `listener` hear of every stage of the workspaces this process opens from now on."""
    global _listener
    _listener = listener


@contextmanager
def open_workspace(root: str | None, study: str, run_name: str) -> Iterator[Workspace]:
    """The workspace under `root` (default: the current folder); its MLflow run ends with the block.

    Raises ValueError with the remedy if the root cannot be written.
    """
    folder = Path(root or ".").resolve()
    try:
        (folder / "data" / "store").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write under {folder}: {error}. Choose another folder with --root") from error
    tracker = Tracker(folder, study, run_name, {"alignflow.git_sha": git_sha()})
    workspace = Workspace(folder, Store(folder / "data" / "store"), tracker, _listener)
    try:
        yield workspace
    except BaseException as error:
        tracker.study_finished("FAILED", workspace.final_metrics, [], workspace.outcomes)
        try:
            tracker.close()
        except RuntimeError as outage:
            error.add_note(str(outage))  # beside the reason why the study failed, not in its place
        raise
    tracker.study_finished("FINISHED", workspace.final_metrics, workspace.final_artifacts, workspace.outcomes)
    tracker.close()


def git_sha() -> str:
    """Commit of the code, `-dirty` if edited; empty outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
