"""MLflow, and nothing but MLflow: the only module that imports it.

A stage's own record is the truth and MLflow a view of it. One experiment per study, a parent run per study
run, one child run per stage key (found again by its tag). Events reach MLflow in batches with their stored
times, and only once a checkpoint or the publication covers them, so no kill doubles a point. A stage is
pending (a file in mlruns/pending/) until all of its record has arrived; what a kill or an outage left behind
is sent from the store by the next run. All of it happens on one worker thread: training never waits for
MLflow, and a study of which every stage is cached never imports it.
"""

import fcntl
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment_core.records import ArtifactRef
from alignment_core.stage import Event, StageOutcome, StageSpec, read_events

BATCH = 1000
"""MLflow's own limit of metrics per call."""
STAGE_KEY_TAG = "alignflow.stage_key"


class Tracker:
    """Feeds one study run to MLflow from a worker thread; errors surface when it is closed."""

    def __init__(self, root: Path, study: str, run_name: str, tags: Mapping[str, str]) -> None:
        self.root = root
        self._session = _Session(root, study, run_name, dict(tags))
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def stage_started(self, spec: StageSpec) -> None:
        """Open, or find again, the child run of this stage key."""
        marker = pending_marker(self.root, spec.key)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
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

    def stage_failed(self, spec: StageSpec) -> None:
        """Mark the child run failed."""
        self._put(lambda: self._session.fail_stage(spec.key))

    def study_finished(
        self,
        status: str,
        metrics: Mapping[str, float],
        artifacts: list[Path],
        outcomes: Mapping[str, StageOutcome],
    ) -> None:
        """Final metrics, report and stages on the parent run, if there is one (all cached: there is none)."""
        if self._thread is not None:
            self._put(lambda: self._session.close_study(status, dict(metrics), artifacts, dict(outcomes)))

    def close(self) -> None:
        """Wait until everything is written; raise what went wrong, if anything did."""
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise RuntimeError(
                f"MLflow at {tracking_uri(self.root)} could not be written: {self._error}. "
                "The artifacts and their records in the store are complete; repair the server or set "
                "MLFLOW_TRACKING_URI, then run the command again"
            ) from self._error

    def _put(self, job: Callable[[], None]) -> None:
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


def pending_marker(root: Path, key: str) -> Path:
    """The file that says: this stage began, and its record is not all in MLflow yet."""
    return root / "mlruns" / "pending" / key


class _Session:
    """The MLflow side, on the worker thread only."""

    def __init__(self, root: Path, study: str, run_name: str, tags: dict[str, str]) -> None:
        self.root, self.study, self.run_name, self.tags = root, study, run_name, tags
        self._client: Any = None
        self._parent = ""
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
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        local = not os.environ.get("MLFLOW_TRACKING_URI")
        location = (self.root / "mlruns" / "artifacts" / self.study).resolve().as_uri() if local else None
        # Two processes that make the same database at once break each other's migrations.
        with _locked(self.root / "mlruns" / ".lock"):
            client = mlflow.MlflowClient(tracking_uri(self.root))
            experiment = client.get_experiment_by_name(self.study)
            self._experiment = (
                experiment.experiment_id
                if experiment
                else client.create_experiment(self.study, artifact_location=location)
            )
        parent = client.create_run(
            self._experiment, run_name=self.run_name, tags={**self.tags, "alignflow.kind": "study"}
        )
        self._parent = parent.info.run_id
        self._client = client
        return client

    def open_stage(self, spec: StageSpec) -> None:
        client = self._connect()
        found = client.search_runs([self._experiment], f"tags.`{STAGE_KEY_TAG}` = '{spec.key}'", max_results=1)
        self._specs[spec.key], self._held[spec.key], self._sent[spec.key] = spec, [], 0
        if not found:
            self._create_stage_run(spec)
            return
        self._found[spec.key] = found[0], time.time()
        self._runs[spec.key] = found[0].info.run_id
        if found[0].info.status != "FINISHED":
            client.update_run(found[0].info.run_id, status="RUNNING")

    def _create_stage_run(self, spec: StageSpec) -> None:
        inputs = ", ".join(f"{name}={ref.stage}/{ref.key[:12]}" for name, ref in spec.inputs.items())
        tags = {
            STAGE_KEY_TAG: spec.key,
            "alignflow.kind": spec.stage,
            "alignflow.inputs": inputs,
            "mlflow.parentRunId": self._parent,
        }
        run = self._client.create_run(self._experiment, run_name=spec.label, tags=tags)
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
        from mlflow.entities import Metric

        self._sent[key] += len(self._held[key])

        metrics = [
            Metric(name, value, int(event.time * 1000), event.step)
            for event in self._held[key]
            for name, value in event.metrics.items()
        ]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._runs[key], metrics=metrics[start : start + BATCH])
        self._held[key] = []

    def close_stage(self, key: str, ref: ArtifactRef, artifact: Path) -> None:
        marker = pending_marker(self.root, key)
        with _locked(marker):
            run = self._client.get_run(self._runs[key])
            if run.info.status != "FINISHED" or run.data.tags.get("alignflow.digest") != ref.digest:
                self._send_record(key, ref, artifact)
            marker.unlink(missing_ok=True)

    def _send_record(self, key: str, ref: ArtifactRef, artifact: Path) -> None:
        """What the published record holds beyond the points sent so far: all of it, if another process computed it."""
        points = [event for event in read_events(artifact) if event.kind == "point"]
        for event in points[:1]:
            self._renew_if_stale(key, event)
        self._held[key] = points[self._sent[key] :]
        self._forward(key)
        run_id, client = self._runs[key], self._client
        client.set_tag(run_id, "alignflow.artifact", f"{ref.stage}/{ref.key}")
        client.set_tag(run_id, "alignflow.digest", ref.digest)
        tables: dict[str, list[dict[str, Any]]] = {}
        for event in read_events(artifact):
            if event.kind == "rows":
                tables.setdefault(event.name, []).extend({"step": event.step, **row} for row in event.rows)
        for name, rows in tables.items():
            client.log_table(run_id, data=as_columns(rows), artifact_file=f"{name}.json")
        for path in sorted(artifact.glob("*.json")):
            if path.name != "manifest.json":
                client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED")

    def fail_stage(self, key: str) -> None:
        if key in self._runs:
            self._client.set_terminated(self._runs[key], "FAILED")

    def close_study(
        self, status: str, metrics: dict[str, float], artifacts: list[Path], outcomes: dict[str, StageOutcome]
    ) -> None:
        from mlflow.entities import Metric

        client = self._connect()
        now = int(time.time() * 1000)
        entries = [Metric(name, value, now, 0) for name, value in metrics.items()]
        for start in range(0, len(entries), BATCH):
            client.log_batch(self._parent, metrics=entries[start : start + BATCH])
        for path in artifacts:
            client.log_artifacts(self._parent, str(path), path.name) if path.is_dir() else client.log_artifact(
                self._parent, str(path)
            )
        client.log_dict(self._parent, self._links(outcomes), "stages.json")
        client.set_terminated(self._parent, status)

    def _links(self, outcomes: dict[str, StageOutcome]) -> dict[str, dict[str, str]]:
        """Stage label -> how it came, its key, and the run that computed it, in whichever study run that was."""
        runs = self._client.search_runs([self._experiment], "tags.`alignflow.kind` != 'study'", max_results=5000)
        by_key = {run.data.tags.get(STAGE_KEY_TAG): run.info.run_id for run in runs}
        return {
            label: {"how": outcome.how, "key": outcome.ref.key, "run_id": by_key.get(outcome.ref.key, "")}
            for label, outcome in outcomes.items()
        }


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an flock on a file: one process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def flatten(value: object, prefix: str = "") -> dict[str, str]:
    """Leaves of nested settings by dotted name, as text; lists stay whole."""
    if isinstance(value, dict):
        flat: dict[str, str] = {}
        for name, item in value.items():
            flat.update(flatten(item, f"{prefix}.{name}" if prefix else name))
        return flat
    return {prefix: str(value)}


def as_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows to columns, missing cells empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name, "") for row in rows] for name in names}
