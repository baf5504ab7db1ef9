"""MLflow, and nothing but MLflow: the only module that imports it.

A stage's own record is the truth and MLflow a view of it. One experiment per study, a parent run per study
run, one child run per stage key (found again by its tag). Events reach MLflow in batches with their stored
times, and only once a checkpoint or the publication covers them, so no kill doubles a point. A stage is
pending (a file in mlruns/pending/) until all of its record has arrived; what a kill or an outage left behind
is sent from the store by the next run. All of it happens on one worker thread: training never waits for
MLflow, and a study of which every stage is cached never imports it.
"""

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignment_core.curves import milestones
from alignment_core.events import Event, read_events
from alignment_core.journal import Began, PastRun
from alignment_core.locks import held
from alignment_core.records import ArtifactRef
from alignment_core.stage import StageOutcome, StageSpec
from tasks.mlflow_format import as_table, flatten, milliseconds, pending_marker

BATCH = 1000
"""MLflow's own limit of metrics per call."""
STAGE_KEY_TAG = "alignflow.stage_key"
KIND_TAG = "alignflow.kind"
"""`study` or the stage; every run of ours has it."""
RUN_TAG = "alignflow.run"
"""The study run (its id in the store's journal) that works on a run of MLflow, or last did."""


class TrackingError(OSError):
    """MLflow could not be written; what it lacks is in the store, and is sent by the next run."""


class Tracker:
    """Feeds one study run to MLflow from a worker thread; errors surface when it is closed."""

    def __init__(
        self, root: Path, study: str, run_name: str, tags: Mapping[str, str], parent_run: str | None = None
    ) -> None:
        """`parent_run`: MLflow's run of the study run this tracker works for, if another process opened that; "" if it
        is not known; None opens one."""
        self.root = root
        self._session = Session(root, study, run_name, dict(tags), with_parent=parent_run is None, parent=parent_run)
        self._starting = threading.Lock()
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def stage_started(self, spec: StageSpec) -> None:
        """Open, or find again, the child run of this stage key."""
        marker = pending_marker(self.root, spec.key)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        self._session.wanted = True
        self._put(lambda: self._session.open_stage(spec))

    def is_pending(self, key: str) -> bool:
        """Whether a run of this stage began whose record has not all arrived."""
        return pending_marker(self.root, key).exists()

    def stage_event(self, spec: StageSpec, event: Event) -> None:
        """Hold the event until a checkpoint covers it."""
        self._put(lambda: self._session.take(spec.key, event))

    def stage_finished(self, spec: StageSpec, ref: ArtifactRef, artifact: Path) -> None:
        """Forward the rest of the record, the sample tables and the small result files; close the run."""
        self._put(lambda: self._session.close_stage(spec.key, ref, artifact))

    def stage_failed(self, spec: StageSpec, stopped: bool = False) -> None:
        """Mark the child run failed; killed, if a signal stopped it."""
        self._put(lambda: self._session.fail_stage(spec.key, "KILLED" if stopped else "FAILED"))

    def stage_abandoned(self, spec: StageSpec, stopped: bool = False) -> None:
        """Close the child run that another process left open, and that nobody goes on with."""
        self._put(lambda: self._session.abandon_stage(spec.key, "KILLED" if stopped else "FAILED"))

    def parent_run(self, patience: float = 60.0) -> str:
        """Id of the study run's own run, for processes that work for it; empty if MLflow does not answer in time."""
        found: Future[str] = Future()
        self._session.wanted = True
        self._put(lambda: found.set_result(self._session.open_parent()))
        deadline = time.monotonic() + patience
        while self._error is None and time.monotonic() < deadline:
            with suppress(TimeoutError):
                return found.result(timeout=0.2)
        return ""

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
        """Final metrics, report and stages on the parent run, if there is one (all cached: there is none)."""
        if self._session.wanted:
            came = {label: (outcome.how, outcome.ref.key) for label, outcome in outcomes.items()}
            self._put(lambda: self._session.close_study(status, dict(metrics), artifacts, came))

    def close(self) -> None:
        """Wait until everything is written; raise what went wrong, if anything did."""
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise TrackingError(
                f"MLflow at {tracking_uri(self.root)} could not be written: {self._error}. "
                "The artifacts and their records in the store are complete; repair the server or set "
                "MLFLOW_TRACKING_URI, then run the command again"
            ) from self._error

    def _put(self, job: Callable[[], None]) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
                self._thread.start()
        self._queue.put(job)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._error is not None:
                continue
            try:
                job()
            except Exception as error:  # kept for close(): an outage must not stop training
                self._error = error


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI if set, else the sqlite database under the root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlruns' / 'mlflow.db').resolve()}"


def run_tags(began: Began) -> dict[str, str]:
    """What a parent run tells of its process."""
    who = {"run": began.run, "host": began.host, "pid": str(began.pid), "boot": began.boot, "flow_run": began.flow_run}
    return {**began.tags, **{f"alignflow.{name}": value for name, value in who.items() if value}}


def connect(uri: str) -> Any:
    """MLflow's client of a tracking server or database."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A pooled connection would go on writing to a database that a rebuild has replaced.
    os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    import mlflow

    return mlflow.MlflowClient(uri)


class Session:
    """The MLflow side of one study run; `Tracker` uses it on its worker thread only."""

    def __init__(
        self,
        root: Path,
        study: str,
        run_name: str,
        tags: dict[str, str],
        uri: str | None = None,
        began: float | None = None,
        with_parent: bool = True,
        parent: str | None = None,
    ) -> None:
        """`uri`, `began`: where to write, and when the study run began; default is the usual place, and now.

        `parent`: the run that stage runs are nested under where this session opens none (`with_parent`).
        """
        self._with_parent = with_parent
        self.root, self.study, self.run_name, self.tags = root, study, run_name, tags
        self.uri, self.began = uri or tracking_uri(root), began
        self.wanted = False
        """Whether a stage had to run, so that this study run is worth a parent run."""
        self._client: Any = None
        self._parent = parent or ""
        self._specs: dict[str, StageSpec] = {}
        self._runs: dict[str, str] = {}
        self._held: dict[str, list[Event]] = {}
        self._sent: dict[str, int] = {}
        self._found: dict[str, tuple[Any, float]] = {}
        """Runs of earlier attempts, by stage key, with the time they were found; until the first event."""

    def _connect(self) -> Any:
        """The client, the experiment and the parent run, once."""
        if self._client is not None:
            return self._client
        local = self.uri.startswith("sqlite:")
        location = (self.root / "mlruns" / "artifacts" / self.study).resolve().as_uri() if local else None
        # Two processes that make the same database at once break each other's migrations.
        with held(self.root / "mlruns" / ".lock"):
            client = connect(self.uri)
            experiment = client.get_experiment_by_name(self.study)
            self._experiment = (
                experiment.experiment_id
                if experiment
                else client.create_experiment(self.study, artifact_location=location)
            )
        if self._with_parent:
            tags, start = {**self.tags, KIND_TAG: "study"}, milliseconds(self.began)
            parent = client.create_run(self._experiment, run_name=self.run_name, tags=tags, start_time=start)
            self._parent = parent.info.run_id
        self._client = client
        return client

    def open_parent(self) -> str:
        """Id of the study run's own run."""
        self._connect()
        return self._parent

    def open_stage(self, spec: StageSpec, began: float | None = None) -> None:
        """Find the run of this stage key, or make one that began at a Unix time (default: now)."""
        client = self._connect()
        self._specs[spec.key], self._held[spec.key], self._sent[spec.key] = spec, [], 0
        # Two commands that come to the same stage at once would each find none, and make one each.
        with held(self.root / "mlruns" / ".lock"):
            found = client.search_runs([self._experiment], f"tags.`{STAGE_KEY_TAG}` = '{spec.key}'", max_results=1)
            if not found:
                return self._create_stage_run(spec, began)
        self._found[spec.key] = found[0], time.time()
        self._runs[spec.key] = found[0].info.run_id
        if found[0].info.status != "FINISHED":
            client.update_run(found[0].info.run_id, status="RUNNING")
            if RUN_TAG in self.tags:
                client.set_tag(found[0].info.run_id, RUN_TAG, self.tags[RUN_TAG])

    def _create_stage_run(self, spec: StageSpec, began: float | None = None) -> None:
        inputs = ", ".join(f"{name}={ref.stage}/{ref.key[:12]}" for name, ref in spec.inputs.items())
        tags = {
            STAGE_KEY_TAG: spec.key,
            KIND_TAG: spec.stage,
            "alignflow.inputs": inputs,
            **({"mlflow.parentRunId": self._parent} if self._parent else {}),
            **{name: value for name, value in self.tags.items() if name == RUN_TAG},
        }
        start = milliseconds(began)
        run = self._client.create_run(self._experiment, run_name=spec.label, tags=tags, start_time=start)
        self._runs[spec.key] = run.info.run_id
        self._log_params(run.info.run_id, spec.config)

    def _renew_if_stale(self, key: str, event: Event) -> None:
        """Put a new run in the place of one whose points are of an attempt that the stage did not go on from."""
        if key not in self._found:
            return
        run, found_at = self._found.pop(key)
        if run.info.status == "FINISHED" or (run.data.metrics and event.time >= found_at):
            self._client.delete_run(run.info.run_id)
            self._create_stage_run(self._specs[key])

    def _log_params(self, run_id: str, config: dict[str, Any]) -> None:
        from mlflow.entities import Param

        flat = flatten(config)
        params = [Param(name, text[:6000]) for name, text in flat.items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(run_id, params=params[start : start + 100])

    def take(self, key: str, event: Event) -> None:
        if event.kind == "checkpoint":
            self._forward(key)
        elif event.kind == "point":
            self._renew_if_stale(key, event)
            self._held[key].append(event)

    def _forward(self, key: str) -> None:
        self._sent[key] += len(self._held[key])
        self._log_points(self._runs[key], self._held[key])
        self._held[key] = []

    def _log_points(self, run_id: str, points: list[Event]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(event.time * 1000), event.step)
            for event in points
            for name, value in event.metrics.items()
        ]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    def close_stage(self, key: str, ref: ArtifactRef, artifact: Path, ended: float | None = None) -> None:
        """Send what is missing of a published stage's record; its run ended at a Unix time (default: now)."""
        marker = pending_marker(self.root, key)
        with held(marker):
            run = self._client.get_run(self._runs[key])
            if run.info.status != "FINISHED" or run.data.tags.get("alignflow.digest") != ref.digest:
                self._send_record(key, ref, artifact, ended)
            marker.unlink(missing_ok=True)

    def _send_record(self, key: str, ref: ArtifactRef, artifact: Path, ended: float | None) -> None:
        """What the published record holds beyond the points sent so far: all of it, if another process computed it."""
        points = [event for event in read_events(artifact) if event.kind == "point"]
        for event in points[:1]:
            self._renew_if_stale(key, event)
        self._held[key] = points[self._sent[key] :]
        self._forward(key)
        run_id, client = self._runs[key], self._client
        client.set_tag(run_id, "alignflow.artifact", f"{ref.stage}/{ref.key}")
        client.set_tag(run_id, "alignflow.digest", ref.digest)
        self._log_points(run_id, milestones(points))
        self._log_tables(run_id, artifact)
        for path in sorted(artifact.glob("*.json")):
            if path.name != "manifest.json":
                client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED", end_time=milliseconds(ended))

    def _log_tables(self, run_id: str, artifact: Path) -> None:
        """Each table whole: MLflow's own `log_table` appends, and would double rows that a kill cut off."""
        tables: dict[str, list[dict[str, Any]]] = {}
        for event in read_events(artifact):
            if event.kind == "rows":
                tables.setdefault(event.name, []).extend({"step": event.step, **row} for row in event.rows)
        for name, rows in tables.items():
            self._client.log_dict(run_id, as_table(rows), f"{name}.json")
        if tables:
            listed = [{"path": f"{name}.json", "type": "table"} for name in tables]
            self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(listed))

    def fail_stage(self, key: str, status: str) -> None:
        if key in self._runs:
            self._client.set_terminated(self._runs[key], status)

    def abandon_stage(self, key: str, status: str) -> None:
        """End the runs of a stage key that are still open, whoever opened them."""
        where = f"tags.`{STAGE_KEY_TAG}` = '{key}' and attributes.status = 'RUNNING'"
        for left in self._connect().search_runs([self._experiment], where):
            self._client.set_terminated(left.info.run_id, status)

    def close_killed(self, run: PastRun) -> None:
        """End the parent run and the stage runs that a dead process left running, as KILLED if nobody knows better."""
        if self.uri.startswith("sqlite:///") and not Path(self.uri.removeprefix("sqlite:///")).is_file():
            return
        client = connect(self.uri)
        experiment = client.get_experiment_by_name(run.began.study)
        if experiment is None:
            return
        status = run.ended.status if run.ended else "KILLED"
        where = f"tags.`{RUN_TAG}` = '{run.began.run}' and attributes.status = 'RUNNING'"
        for left in client.search_runs([experiment.experiment_id], where, max_results=5000):
            client.set_terminated(left.info.run_id, status if left.data.tags[KIND_TAG] == "study" else "KILLED")

    def close_study(
        self,
        status: str,
        metrics: dict[str, float],
        artifacts: list[Path],
        outcomes: Mapping[str, tuple[str, str]],
        ended: float | None = None,
    ) -> None:
        """`outcomes`: stage label -> (how its artifact was had, key). Ended at a Unix time (default: now)."""
        client = self._connect()
        moment = time.time() if ended is None else ended
        self._log_points(self._parent, [Event(kind="point", step=0, time=moment, metrics=metrics)])
        for path in artifacts:
            client.log_artifacts(self._parent, str(path), path.name) if path.is_dir() else client.log_artifact(
                self._parent, str(path)
            )
        client.log_dict(self._parent, self._links(outcomes), "stages.json")
        client.set_terminated(self._parent, status, end_time=milliseconds(moment))

    def _links(self, outcomes: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
        """Stage label -> how it came, its key, and the run that computed it, in whichever study run that was."""
        runs = self._client.search_runs([self._experiment], f"tags.`{KIND_TAG}` != 'study'", max_results=5000)
        by_key = {run.data.tags.get(STAGE_KEY_TAG): run.info.run_id for run in runs}
        return {
            label: {"how": how, "key": key, "run_id": by_key.get(key, "")} for label, (how, key) in outcomes.items()
        }
