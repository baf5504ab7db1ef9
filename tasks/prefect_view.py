"""What Prefect's UI shows of a study beside its states: progress, tables of evaluations, links to MLflow.

Nothing here may stop or slow a stage: progress is told from a thread, and a server that does not take an artifact
is only mentioned in the log.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

from httpx import HTTPError
from prefect import runtime
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException
from prefect.settings import get_current_settings

from alignment_core.events import Event
from alignment_core.records import EvalReport
from alignment_core.redaction import redact
from alignment_core.stage import StageSpec
from tasks.progress import headline

logger = logging.getLogger("alignflow")

PERIOD = 10.0
"""Seconds before a stage is a long one, and between two tellings of its progress."""
LOCAL_UI = "http://127.0.0.1:4200"
"""Where `alignflow ui` shows the runs of the embedded server."""


def prefect_url() -> str:
    """Web page of the current task run, else of the current flow run; "" outside of both."""
    base = (get_current_settings().ui_url or LOCAL_UI).rstrip("/")
    for kind, run in (("task-run", runtime.task_run.id), ("flow-run", runtime.flow_run.id)):
        if run:
            return redact(f"{base}/runs/{kind}/{run}").replace("***@", "")
    return ""


def artifact_key(*parts: str) -> str:
    """A key as Prefect wants it: lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def link_to_mlflow(stage_key: str, address: str) -> None:
    """A link artifact of the current run to its run in MLflow; a local database has no page yet, so it says how."""
    if not runtime.flow_run.id:
        return
    key = artifact_key("mlflow", stage_key[:12] or "study")
    what = "Run of this stage in MLflow" if stage_key else "Run of this study in MLflow"
    if address:
        _write(lambda: create_link_artifact(address, link_text=what, key=key, description=what))
    else:
        text = f"{what}: `alignflow ui` shows it (the tracking database is a local file)."
        _write(lambda: create_markdown_artifact(text, key=key, description=what))


def show_evaluation(label: str, report: EvalReport) -> None:
    """A table artifact of one evaluation, where it was graded."""
    row = evaluation_row(label, report.model_dump())
    _write(lambda: create_table_artifact([row], key=artifact_key("evaluation", label), description=label))


def show_evaluations(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table artifact of all evaluations of a flow run."""
    if rows and runtime.flow_run.id:
        table = [evaluation_row(str(row["method"]), row) for row in rows]
        key = artifact_key("evaluations", name)
        _write(lambda: create_table_artifact(table, key=key, description=f"Evaluations of {name}"))


def evaluation_row(method: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of such a table, in per cent."""
    return {
        "method": method,
        "n": row["n"],
        "accuracy %": round(100 * row["accuracy"], 1),
        "95 % interval": f"{100 * row['accuracy_low']:.1f}-{100 * row['accuracy_high']:.1f}",
        "format %": round(100 * row["format_rate"], 1),
        "mean tokens": round(row["mean_length"], 1),
    }


@contextmanager
def shown_progress(spec: StageSpec) -> Iterator[Callable[[Event], None]]:
    """Takes the events of a stage, and tells Prefect of its progress once it has run for a while."""
    progress = Progress(spec)
    try:
        yield progress.event
    except BaseException:
        progress.close(finished=False)
        raise
    progress.close(finished=True)


class Progress:
    """The progress artifact of one stage; Prefect hears of it from a thread."""

    def __init__(self, spec: StageSpec, period: float = PERIOD) -> None:
        self.label, self.period = spec.label, period
        self.key = artifact_key("progress", spec.stage, spec.key[:12])
        self._began = time.monotonic()
        self._latest: Event | None = None
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._finished = False

    def event(self, event: Event) -> None:
        """Remember the newest point; start telling once the stage is a long one."""
        if event.kind != "point" or not event.total:
            return
        self._latest = event
        if self._thread is None and time.monotonic() - self._began >= self.period and runtime.flow_run.id:
            context = copy_context()
            self._thread = threading.Thread(target=context.run, args=(self._tell,), name="progress", daemon=True)
            self._thread.start()

    def close(self, finished: bool) -> None:
        """Tell the last of it; a server that does not answer is not waited for."""
        self._finished = finished
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _tell(self) -> None:
        artifact = _write(lambda: create_progress_artifact(self._percent(), key=self.key, description=self._words()))
        while artifact is not None:
            done = self._done.wait(self.period)
            _write(lambda: update_progress_artifact(artifact, self._percent(), description=self._words()))
            if done:
                return

    def _percent(self) -> float:
        event = self._latest
        if self._done.is_set() and self._finished:
            return 100.0
        return round(min(100.0, 100 * event.step / event.total), 1) if event and event.total else 0.0

    def _words(self) -> str:
        event = self._latest
        return f"{self.label}: step {event.step} of {event.total}  {headline(event.metrics)}" if event else self.label


def _write(create: Callable[[], Any]) -> Any:
    """What `create` returns; None, with a line in the log, if Prefect does not take the artifact."""
    try:
        return create()
    except (PrefectException, HTTPError, OSError, RuntimeError) as error:
        logger.info("Prefect did not take an artifact: %s", redact(str(error)))
    return None
