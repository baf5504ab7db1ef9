"""MLflow, and nothing but MLflow: the only module that imports it.

Every call may be made twice: what is there already is found and left alone, so that whoever was cut off
(tasks.tracker) simply begins again.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment_core.events import Event, read_events
from alignment_core.journal import Began
from alignment_core.locks import held
from alignment_core.redaction import redact
from tasks.lineage import Dataset, Model
from tasks.mlflow_format import TAG_LENGTH, UNSAFE_IN_MODEL_NAMES, as_table, cut

BATCH = 1000
"""MLflow's own limit of metrics per call."""
STAGE_KEY_TAG = "alignflow.stage_key"
KIND_TAG = "alignflow.kind"
"""`study` or the stage; every run and model of ours has it."""
RUN_TAG = "alignflow.run"
"""The study run (its id in the store's journal) that works on a run of MLflow, or last did."""
DIGEST_TAG = "alignflow.digest"
EXTERNAL_TAG = "mlflow.model.isExternal"
"""MLflow's own word for a model whose weights lie elsewhere."""
BUSY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "ABORTED"}
"""MLflow's words for what may go well later."""
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A pooled connection would go on writing to a database that a rebuild has replaced.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
    # The tracker tries again itself, and says so.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    # It prints the address of every run that ends, password and all.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Defaults of the environment, for variables the user has not set."""


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI if set, else the sqlite database under the root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlruns' / 'mlflow.db').resolve()}"


def run_tags(began: Began) -> dict[str, str]:
    """What a parent run tells of its process."""
    who = {"run": began.run, "host": began.host, "pid": str(began.pid), "boot": began.boot, "flow_run": began.flow_run}
    return {**began.tags, **{f"alignflow.{name}": value for name, value in who.items() if value}}


def as_tags(values: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow takes them: without secrets, not too long, none that is empty."""
    return {name: cut(redact(value), TAG_LENGTH) for name, value in values.items() if value}


def connect(uri: str) -> Any:
    """MLflow's client of a tracking server or database."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells of every try
    import mlflow

    return mlflow.MlflowClient(uri)


def may_pass(error: Exception) -> bool:
    """Whether MLflow may take the same call later: nobody answered, or the server or its database was busy."""
    response = getattr(error, "response", None)
    if response is not None:
        return bool(response.status_code >= 500 or response.status_code in {408, 429})
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(("requests", "urllib3")):
        return True
    return getattr(error, "error_code", None) in BUSY


class Scribe:
    """Writes into one experiment."""

    def __init__(self, uri: str, root: Path, study: str) -> None:
        """The experiment of a study, made if there is none; that of a local database keeps its files under `root`."""
        location = (root / "mlruns" / "artifacts" / study).resolve().as_uri() if uri.startswith("sqlite:") else None
        self._lock = root / "mlruns" / ".lock"
        # Two processes that make the same database at once break each other's migrations.
        with held(self._lock):
            self.client = connect(uri)
            found = self.client.get_experiment_by_name(study)
            self.experiment = str(
                found.experiment_id if found else self.client.create_experiment(study, artifact_location=location)
            )
        self._models: dict[str, str] = {}

    def find_or_create(
        self, where: Mapping[str, str], tags: Mapping[str, str], name: str, began: int | None
    ) -> tuple[Any, bool]:
        """The run that has these tags, made if there is none; and whether it was there. began: Unix time, ms."""
        # Two commands that come to the same stage at once would each find none, and make one each.
        with held(self._lock):
            found = self.find_runs(where, 1) if where else []
            if found:
                return found[0], True
            return self.client.create_run(self.experiment, began, dict(tags), name), False

    def find_runs(self, tags: Mapping[str, str], most: int = 5000) -> list[Any]:
        """The active runs that have these tags."""
        where = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return list(self.client.search_runs([self.experiment], where, max_results=most))

    def log_params(self, run: Any, params: Mapping[str, str]) -> None:
        """Those that the run does not have: a value once logged stays."""
        from mlflow.entities import Param

        missing = [Param(name, text) for name, text in params.items() if name not in run.data.params]
        for start in range(0, len(missing), 100):
            self.client.log_batch(run.info.run_id, params=missing[start : start + 100])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set them all in one call."""
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def log_points(self, run_id: str, points: Iterable[Event], model: str | None = None, linked: str = "") -> None:
        """Points of a run; the metrics that begin with `linked` are those of a LoggedModel, too."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(event.time * 1000), event.step, model if name.startswith(linked) else None)
            for event in points
            for name, value in event.metrics.items()
        ]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    def other_points(self, run_id: str, points: Sequence[Event]) -> bool:
        """Whether a run holds points of these metrics that are not among these."""
        mine = {(name, event.step, int(event.time * 1000)) for event in points for name in event.metrics}
        shown = self.client.get_run(run_id).data.metrics
        return any(
            (name, point.step, point.timestamp) not in mine
            for name in {name for name, _, _ in mine} & shown.keys()
            for point in self.client.get_metric_history(run_id, name)
        )

    def log_inputs(self, run_id: str, datasets: Iterable[Dataset], models: Iterable[str]) -> None:
        """The data sets and the models that a run reads, those that it does not have."""
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag, LoggedModelInput

        # Two commands that tell of one stage at once would each find none, and MLflow refuses the second.
        with held(self._lock):
            shown = self.client.get_run(run_id).inputs
            known = {one.model_id for one in shown.model_inputs} if shown else set()
            read = {(one.dataset.name, one.dataset.digest) for one in shown.dataset_inputs} if shown else set()
            inputs = []
            for one in datasets:
                source = json.dumps({"uri": one.uri, "digest": one.digest})
                entity = Entity(one.name[:500], one.digest[:36], one.uri.partition(":")[0], source)
                if (entity.name, entity.digest) not in read:
                    inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", one.context)]))
            fresh = [LoggedModelInput(one) for one in models if one not in known]
            if inputs or fresh:
                self.client.log_inputs(run_id, inputs, fresh)

    def model(self, model: Model, run_id: str | None = None) -> str:
        """Id of the LoggedModel of an artifact, made if there is none; one of other content is removed."""
        ref, chosen = model.ref, None
        if ref.digest in self._models:
            return self._models[ref.digest]
        with held(self._lock):
            for found in self.client.search_logged_models([self.experiment], f"tags.`{STAGE_KEY_TAG}` = '{ref.key}'"):
                if found.tags.get(DIGEST_TAG) == ref.digest:
                    chosen = found
                else:
                    self.client.delete_logged_model(found.model_id)
            if chosen is None:
                name = model.name.translate(UNSAFE_IN_MODEL_NAMES)
                tags = {STAGE_KEY_TAG: ref.key, DIGEST_TAG: ref.digest, KIND_TAG: ref.stage, EXTERNAL_TAG: "true"}
                chosen = self.client.create_logged_model(
                    self.experiment, name, run_id, tags, model.params, model_type=ref.stage
                )
            if chosen.status != "READY":
                self.client.finalize_logged_model(chosen.model_id, "READY")
        self._models[ref.digest] = str(chosen.model_id)
        return self._models[ref.digest]

    def log_output(self, run_id: str, model: str) -> None:
        """The model that a run made."""
        from mlflow.entities import LoggedModelOutput

        with held(self._lock):
            outputs = self.client.get_run(run_id).outputs
            if outputs is None or model not in {one.model_id for one in outputs.model_outputs}:
                self.client.log_outputs(run_id, [LoggedModelOutput(model, 0)])

    def log_tables(self, run_id: str, artifact: Path) -> None:
        """Each table whole: MLflow's own `log_table` appends, and would double rows that a kill cut off."""
        tables: dict[str, list[dict[str, Any]]] = {}
        for event in read_events(artifact):
            if event.kind == "rows":
                tables.setdefault(event.name, []).extend({"step": event.step, **row} for row in event.rows)
        for name, rows in tables.items():
            self.client.log_dict(run_id, as_table(rows), f"{name}.json")
        if tables:
            listed = [{"path": f"{name}.json", "type": "table"} for name in tables]
            self.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(listed))

    def log_files(self, run_id: str, files: Iterable[Path]) -> None:
        """Files, and folders under their own names."""
        for path in files:
            if path.is_dir():
                self.client.log_artifacts(run_id, str(path), path.name)
            else:
                self.client.log_artifact(run_id, str(path))
