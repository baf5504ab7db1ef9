"""One study run as MLflow shows it.

A stage's own record is the truth and MLflow a view of it. One experiment per study, a parent run per study run,
one child run per stage key (found again by its tag). Data sets are inputs of runs; models are LoggedModels that
point into the store and carry the metrics they reached. Points are sent only once a checkpoint or the publication
covers them, so no kill doubles one.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment_core.curves import milestones
from alignment_core.events import Event, read_events
from alignment_core.journal import PastRun
from alignment_core.locks import held
from alignment_core.manifest import Manifest
from alignment_core.records import ArtifactRef
from alignment_core.stage import StageSpec, spec_of
from alignment_core.store_access import open_store
from tasks.lineage import datasets_of, describe_model, find_manifest, holds_model, model_behind
from tasks.mlflow_format import as_params, milliseconds, pending_marker, read_meters, run_address, system_record
from tasks.tracking import DIGEST_TAG, KIND_TAG, RUN_TAG, STAGE_KEY_TAG, Scribe, as_tags, connect, tracking_uri


class Session:
    """The MLflow side of one study run; `tasks.tracker.Tracker` uses it on its worker thread only.

    Each method may be called again after it was cut off by an error.
    """

    def __init__(
        self,
        root: Path,
        study: str,
        run_name: str,
        tags: Mapping[str, str],
        settings: Mapping[str, Any] | None = None,
        uri: str | None = None,
        began: float | None = None,
        parent: str | None = None,
    ) -> None:
        """`uri`, `began`: where to write, and when the study run began; default is the usual place, and now.

        parent: the run that stage runs are nested under, "" for none; None opens one for this study run.
        """
        self._opens_parent, self.parent = parent is None, parent or ""
        self.root, self.study, self.run_name = root, study, run_name
        self.tags, self.settings = as_tags(tags), as_params(settings or {})
        self.uri, self.began = uri or tracking_uri(root), began
        self._store = open_store(root, remembers=False)
        self._scribe: Scribe | None = None
        self._specs: dict[str, tuple[StageSpec, Mapping[str, str]]] = {}
        self._runs: dict[str, str] = {}
        self._held: dict[str, list[Event]] = {}
        self._sent: dict[str, int] = {}
        self._found: dict[str, tuple[Any, float]] = {}
        """Runs of earlier attempts, by stage key, with the time they were found; until the first event."""

        self._reopened: set[str] = set()
        """Stage keys whose runs are of earlier attempts, until the first points are sent."""

    def address(self, key: str = "") -> str:
        """Web page of the run of a stage, or of the study run; "" where there is none."""
        run = self._runs.get(key) if key else self.parent
        return run_address(self.uri, self._scribe.experiment, run) if run and self._scribe else ""

    def open_study(self) -> Scribe:
        """The experiment and the parent run, once."""
        if self._scribe is None:
            scribe = Scribe(self.uri, self.root, self.study)
            if self._opens_parent:
                # There already if a call was cut off, or if another host began it.
                kind = {KIND_TAG: "study"}
                known = {RUN_TAG: self.tags[RUN_TAG], **kind} if RUN_TAG in self.tags else {}
                tags, began = {**self.tags, **kind}, milliseconds(self.began)
                run, _ = scribe.find_or_create(known, tags, self.run_name, began)
                scribe.log_params(run, self.settings)
                self.parent = str(run.info.run_id)
            self._scribe = scribe
        return self._scribe

    def open_stage(self, spec: StageSpec, notes: Mapping[str, str] | None = None, began: float | None = None) -> None:
        """Find the run of this stage key, or make one that began at a Unix time (default: now).

        notes: what the artifact's manifest will say of its producer.
        """
        scribe = self.open_study()
        self._specs[spec.key] = spec, notes or {}
        self._held[spec.key], self._sent[spec.key] = [], 0
        tags = self._stage_tags(spec, notes or {})
        run, found = scribe.find_or_create({STAGE_KEY_TAG: spec.key}, tags, spec.label, milliseconds(began))
        if found:
            self._found[spec.key] = run, time.time()
            self._reopened.add(spec.key)
        self._runs[spec.key] = str(run.info.run_id)
        if run.info.status == "FINISHED":
            return
        if found:
            scribe.client.update_run(run.info.run_id, status="RUNNING")
            scribe.set_tags(run.info.run_id, tags)
        scribe.log_params(run, as_params(spec.config))
        behind = model_behind(self._store, spec)
        models = [self._model(behind)] if behind is not None else []
        scribe.log_inputs(run.info.run_id, datasets_of(self.root, self._store, spec), models)

    def _stage_tags(self, spec: StageSpec, notes: Mapping[str, str]) -> dict[str, str]:
        inputs = ", ".join(f"{name}={ref.stage}/{ref.key[:12]}" for name, ref in spec.inputs.items())
        return as_tags(
            {
                STAGE_KEY_TAG: spec.key,
                KIND_TAG: spec.stage,
                "alignflow.inputs": inputs,
                "alignflow.parent_keys": ",".join(dict.fromkeys(ref.key for ref in spec.inputs.values())),
                "alignflow.git_sha": notes.get("git_sha") or self.tags.get("alignflow.git_sha", ""),
                "alignflow.prefect_url": notes.get("prefect_url", ""),
                RUN_TAG: self.tags.get(RUN_TAG) or notes.get("run", ""),
                "mlflow.parentRunId": self.parent,
            }
        )

    def _model(self, ref: ArtifactRef, run_id: str | None = None) -> str:
        """Id of the LoggedModel of an artifact."""
        return self.open_study().model(describe_model(self.root, self._store, ref), run_id)

    def _renew_if_stale(self, key: str, event: Event) -> None:
        """Put a new run in the place of one whose points are of an attempt that the stage did not go on from."""
        if key not in self._found:
            return
        run, found_at = self._found[key]
        if run.info.status == "FINISHED" or (run.data.metrics and event.time >= found_at):
            self._renew(key)
        del self._found[key]

    def _renew_if_ahead(self, key: str, points: list[Event]) -> None:
        """Put a new run in the place of one that holds other points than these, the first that are sent to it.

        A host that is lost has told of points which only its own checkpoints covered: whoever goes on from the last
        one that was uploaded computes these steps again.
        """
        if key not in self._reopened or self._sent[key] or not points:
            return
        if self.open_study().other_points(self._runs[key], points):
            held = self._held[key]
            try:
                self._renew(key)
            finally:
                self._held[key] = held
            self._found.pop(key, None)
        self._reopened.discard(key)

    def _renew(self, key: str) -> None:
        self.open_study().client.delete_run(self._runs[key])
        system_record(self.root, key).unlink(missing_ok=True)
        self.open_stage(*self._specs[key])

    def take(self, key: str, event: Event) -> None:
        """Hold a point until a checkpoint covers it."""
        if event.kind == "checkpoint":
            self._renew_if_ahead(key, self._held[key])
            self.open_study().log_points(self._runs[key], self._held[key])
            self._sent[key] += len(self._held[key])
            self._held[key] = []
        elif event.kind == "point":
            self._renew_if_stale(key, event)
            self._held[key].append(event)

    def meter(self, key: str, event: Event) -> None:
        """What the host's meters showed; nothing waits for a checkpoint."""
        self.open_study().log_points(self._runs[key], [event])

    def close_stage(self, key: str, ref: ArtifactRef, artifact: Path, ended: float | None = None) -> None:
        """Send what is missing of a published stage's record; its run ended at a Unix time (default: now)."""
        marker = pending_marker(self.root, key)
        with held(marker):
            run = self.open_study().client.get_run(self._runs[key])
            if run.info.status != "FINISHED" or run.data.tags.get(DIGEST_TAG) != ref.digest:
                self._send_record(key, ref, artifact, ended)
            marker.unlink(missing_ok=True)

    def show_stage(self, manifest: Manifest) -> None:
        """The run of a stage that was computed earlier, from the store alone; does nothing if it is there."""
        artifact = self._store.record(manifest.ref())
        began, spec = manifest.producer.started, spec_of(manifest)
        self.open_stage(spec, manifest.producer.annotations, began)
        self.close_stage(spec.key, manifest.ref(), artifact, began + manifest.producer.seconds)

    def _send_record(self, key: str, ref: ArtifactRef, artifact: Path, ended: float | None) -> None:
        """What the published record holds beyond the points sent so far: all of it, if another process computed it."""
        points = [event for event in read_events(artifact) if event.kind == "point"]
        for event in points[:1]:
            self._renew_if_stale(key, event)
        self._renew_if_ahead(key, points)
        scribe, run_id, (spec, _) = self.open_study(), self._runs[key], self._specs[key]
        behind = model_behind(self._store, spec) if spec.stage == "grade" else None
        evaluated = self._model(behind) if behind is not None else None
        scribe.log_points(run_id, points[self._sent[key] :], evaluated, "eval/")
        self._sent[key], self._held[key] = len(points), []
        manifest = find_manifest(self._store, ref)
        made_by = manifest.producer.annotations if manifest is not None else {}
        tags = {"alignflow.artifact": f"{ref.stage}/{ref.key}", DIGEST_TAG: ref.digest}
        scribe.set_tags(run_id, {**self._stage_tags(spec, made_by), **tags})
        produced = self._model(ref, run_id) if holds_model(artifact) else None
        if produced is not None:
            scribe.log_output(run_id, produced)
        scribe.log_points(run_id, milestones(points), produced, "final/")
        scribe.log_points(run_id, read_meters(system_record(self.root, key)))
        scribe.log_tables(run_id, artifact)
        scribe.log_files(run_id, (path for path in sorted(artifact.glob("*.json")) if path.name != "manifest.json"))
        scribe.client.set_terminated(run_id, "FINISHED", end_time=milliseconds(ended))

    def fail_stage(self, key: str, status: str) -> None:
        """End the run of a stage that raised."""
        if key in self._runs:
            self.open_study().client.set_terminated(self._runs[key], status)

    def abandon_stage(self, key: str, status: str) -> None:
        """End the runs of a stage key that are still open, whoever opened them."""
        scribe = self.open_study()
        for left in scribe.find_runs({STAGE_KEY_TAG: key}):
            if left.info.status == "RUNNING":
                scribe.client.set_terminated(left.info.run_id, status)

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
        ended: float,
    ) -> None:
        """`outcomes`: stage label -> (how its artifact was had, key). Ended at a Unix time."""
        scribe = self.open_study()
        scribe.log_points(self.parent, [Event(kind="point", step=0, time=ended, metrics=metrics)])
        scribe.log_files(self.parent, artifacts)
        scribe.client.log_dict(self.parent, self._links(scribe, outcomes), "stages.json")
        scribe.client.set_terminated(self.parent, status, end_time=milliseconds(ended))

    def _links(self, scribe: Scribe, outcomes: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
        """Stage label -> how it came, its key, and the run that computed it, in whichever study run that was."""
        by_key = {run.data.tags.get(STAGE_KEY_TAG): run.info.run_id for run in scribe.find_runs({})}
        return {
            label: {"how": how, "key": key, "run_id": by_key.get(key, "")} for label, (how, key) in outcomes.items()
        }
