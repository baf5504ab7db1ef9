"""The tracker: feeds one study run to MLflow from a thread of its own, so that training never waits for it.

A stage is pending (a file in mlruns/pending/) until all of its record has arrived; what a kill left behind is sent
from the store by the next run. While MLflow does not answer, the thread tries again and again, training goes on, and
what is to be told is kept in order. A study that shows all its stages already, and computes none, never imports MLflow.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

from alignment_core.events import Event
from alignment_core.journal import PastRun
from alignment_core.manifest import Manifest
from alignment_core.operation import number_setting
from alignment_core.records import ArtifactRef
from alignment_core.redaction import redact
from alignment_core.stage import StageOutcome, StageSpec
from tasks.mlflow_format import pending_marker
from tasks.session import Session
from tasks.tracking import may_pass, tracking_uri

logger = logging.getLogger("alignflow")

WAIT = "ALIGNFLOW_MLFLOW_WAIT"
"""Names how many seconds a study that has ended waits for an MLflow that does not answer."""
WAIT_SECONDS = 120.0
DELAYS = (0.5, 30.0)
"""Seconds before the second try, doubled with every further one, and the longest."""

Announce = Callable[[str, str], None]
"""Told the key of a stage ("": the study) and the web page of its run ("": it has none yet)."""


class TrackingError(OSError):
    """MLflow could not be written; what it lacks is in the store, and is sent by the next run."""


class Tracker:
    """Feeds one study run to MLflow from a worker thread; errors surface when it is closed."""

    def __init__(
        self,
        root: Path,
        study: str,
        run_name: str,
        tags: Mapping[str, str],
        settings: Mapping[str, Any] | None = None,
        announce: Announce | None = None,
        parent_run: str | None = None,
    ) -> None:
        """`settings`: of the study, for the parent run; `announce` is called from the tracker's thread.

        parent_run: MLflow's run of the study run this tracker works for, if another process opened that; "" if it is
        not known; None opens one.
        """
        self.root = root
        self._session = Session(root, study, run_name, tags, settings, parent=parent_run)
        self._starting = threading.Lock()
        self._announce = announce
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._wanted = False
        """Whether a stage is new to this study, so that this study run is worth a parent run."""
        self._closing = threading.Event()
        self._patience = number_setting(WAIT, WAIT_SECONDS)
        self._alive_at = 0.0
        """When MLflow last took something, or closing began: what the patience is counted from (monotonic)."""

    def open_study(self) -> None:
        """Open the parent run: before the first stage that is new to this study, wherever it is computed."""
        if not self._wanted:
            self._wanted = True
            self._put(self._session.open_study)
            self._tell("")

    def parent_run(self, patience: float = 60.0) -> str:
        """Id of the study run's own run, for processes that work for it; "" if MLflow does not answer in time."""
        self.open_study()
        found: Future[str] = Future()
        self._put(lambda: found.set_result(self._session.parent))
        deadline = time.monotonic() + patience
        while self._error is None and time.monotonic() < deadline:
            with suppress(TimeoutError):
                return found.result(timeout=0.2)
        return ""

    def stage_started(self, spec: StageSpec, notes: Mapping[str, str] | None = None) -> None:
        """Open, or find again, the child run of this stage key; `notes` are what its manifest will say."""
        marker = pending_marker(self.root, spec.key)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        self.open_study()
        self._put(lambda: self._session.open_stage(spec, notes))
        self._tell(spec.key)

    def is_pending(self, key: str) -> bool:
        """Whether a run of this stage began whose record has not all arrived."""
        return pending_marker(self.root, key).exists()

    def stage_event(self, spec: StageSpec, event: Event) -> None:
        """Hold the event until a checkpoint covers it; tables are sent from the published record."""
        if event.kind in {"point", "checkpoint"}:
            self._put(lambda: self._session.take(spec.key, event))

    def meter(self, spec: StageSpec, event: Event) -> None:
        """What the host's meters showed while the stage ran."""
        self._put(lambda: self._session.meter(spec.key, event))

    def stage_finished(self, spec: StageSpec, ref: ArtifactRef, artifact: Path) -> None:
        """Forward the rest of the record, the sample tables and the small result files; close the run."""
        ended = time.time()
        self._put(lambda: self._session.close_stage(spec.key, ref, artifact, ended))

    def stage_found(self, manifest: Manifest) -> None:
        """Show a stage that was computed before this study came to it: in another study, or under another root."""
        self.open_study()
        self._put(lambda: self._session.show_stage(manifest))

    def stage_failed(self, spec: StageSpec, stopped: bool = False) -> None:
        """Mark the child run failed; killed, if a signal stopped it."""
        self._put(lambda: self._session.fail_stage(spec.key, "KILLED" if stopped else "FAILED"))

    def stage_abandoned(self, spec: StageSpec, stopped: bool = False) -> None:
        """Close the child run that another process left open, and that nobody goes on with."""
        self._put(lambda: self._session.abandon_stage(spec.key, "KILLED" if stopped else "FAILED"))

    def close_killed(self, run: PastRun) -> None:
        """Close the parent run, and the stage runs left running, of a study run whose process is dead."""

        def close() -> None:
            self._session.close_killed(run)
            run.note_closed()

        self._put(close)

    def study_finished(
        self,
        status: str,
        metrics: Mapping[str, float],
        artifacts: list[Path],
        outcomes: Mapping[str, StageOutcome],
    ) -> None:
        """Final metrics, report and stages on the parent run, if there is one (nothing new: there is none)."""
        if self._wanted:
            came = {label: (outcome.how, outcome.ref.key) for label, outcome in outcomes.items()}
            finish = partial(self._session.close_study, status, dict(metrics), artifacts, came, time.time())
            self._put(finish)

    def close(self, patience: float | None = None) -> None:
        """Wait until everything is written; raise what went wrong, if anything did.

        patience: seconds to wait for an MLflow that does not answer; default is ALIGNFLOW_MLFLOW_WAIT, else 120.
        """
        if self._thread is None:
            return
        self._patience = self._patience if patience is None else patience
        self._alive_at = time.monotonic()
        self._queue.put(None)
        self._closing.set()
        self._thread.join()
        if self._error is not None:
            # The cause is told in words only: its own text, and those before it, may hold a password.
            raise TrackingError(
                f"MLflow at {redact(tracking_uri(self.root))} could not be written: {redact(str(self._error))}. "
                "The artifacts and their records in the store are complete; repair the server or set "
                "MLFLOW_TRACKING_URI, then run the command again"
            ) from None

    def _tell(self, key: str) -> None:
        """Announce the page of a run, in the context of whoever asked for the run."""
        if self._announce is not None:
            context, announce = copy_context(), self._announce
            self._put(lambda: context.run(announce, key, self._session.address(key)))

    def _put(self, job: Callable[[], object]) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
                self._thread.start()
        self._queue.put(job)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._error is None:
                self._insist(job)

    def _insist(self, job: Callable[[], object]) -> None:
        """Do one job, again and again while MLflow does not answer; an outage must not stop training."""
        delay, silent_since = DELAYS[0], 0.0
        while True:
            try:
                job()
            except Exception as error:  # kept for close()
                if not may_pass(error) or self._is_out_of_patience():
                    self._error = error
                    return
                if not silent_since:
                    silent_since = time.monotonic()
                    what = redact(str(error)).splitlines()[0][:200]
                    logger.warning("MLflow does not answer (%s): training goes on, and its record is kept", what)
                self._pause(delay)
                delay = min(2 * delay, DELAYS[1])
                continue
            self._alive_at = time.monotonic()
            if silent_since:
                seconds = time.monotonic() - silent_since
                logger.warning("MLflow answers again after %.0f s: it is sent what it lacks", seconds)
            return

    def _is_out_of_patience(self) -> bool:
        return self._closing.is_set() and time.monotonic() - self._alive_at >= self._patience

    def _pause(self, delay: float) -> None:
        """Wait before the next try; not for long once everybody waits."""
        if self._closing.is_set():
            time.sleep(min(delay, 1.0))
        else:
            self._closing.wait(delay)
