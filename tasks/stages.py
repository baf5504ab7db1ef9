"""One cached task per stage: Prefect's record in front, the artifact store behind.

The key is the stage's own (tasks never let Prefect hash arguments); the record Prefect keeps is the small
`ArtifactRef` as JSON. Before each call the store is asked whether the artifact is there and whole; if not,
Prefect's record is refreshed, so a deleted artifact is a miss, said aloud. So it is where the tracker has not
yet confirmed the stage's record: the artifact is then found, and its record sent again.
"""

import logging
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from prefect import task

from alignment_core.changes import explain_miss
from alignment_core.config_base import Config
from alignment_core.events import Event
from alignment_core.interruption import exit_code_of
from alignment_core.operation import stage_python
from alignment_core.records import ArtifactRef, EvalReport
from alignment_core.redaction import redact
from alignment_core.shared_store import SharedStore
from alignment_core.stage import StageOutcome, StageSpec, make_spec, run_stage
from alignment_core.stage_config import AcceptedStage
from alignment_core.stage_server import run_elsewhere
from alignment_core.store import Store
from tasks.dispatch import ServerAway
from tasks.pools import pool_of
from tasks.prefect_view import prefect_url, show_evaluation, shown_progress
from tasks.stage_request import StageRequest
from tasks.system_metrics import measured
from tasks.workspace import Workspace, git_sha

logger = logging.getLogger("alignflow")


def run_cached(
    workspace: Workspace, stage: str, config: Config, inputs: Mapping[str, ArtifactRef], label: str
) -> ArtifactRef:
    """The artifact of one stage, computed at most once per key."""
    spec = make_spec(stage, config, inputs, label)
    if workspace.planner is not None:
        ref = workspace.planner.consider(spec)
        note_accepted(workspace, label, ref, workspace.planner.stages[label].accepted)
        return ref
    found = workspace.store.lookup(stage, spec.key)
    if found.ref is not None and workspace.store.shared is not None:
        share_if_absent(workspace.store.shared, found.ref)
    if found.ref is not None and found.accepted:
        spec = as_computed(workspace.store, spec, found.ref)
    workspace.reached(label, stage, spec.key, "asked")
    unsent = workspace.tracker.is_pending(spec.key)
    if found.ref is None:
        reason = found.reason or explain_miss(workspace.store, spec.components, label)
    else:
        reason = "its record had not reached MLflow" if unsent else found.reason or "same key"
    shown = f"{label} ({workspace.model})" if workspace.model else label
    configured = stage_task.with_options(
        name=stage,
        task_run_name=shown.replace("{", "(").replace("}", ")"),
        cache_key_fn=lambda _context, _parameters: f"{stage}/{spec.key}",
        refresh_cache=found.ref is None or unsent,
        result_storage=workspace.store.root / ".prefect",
    )
    result = configured(spec, workspace, reason)
    ref = found.ref or ArtifactRef.model_validate(result)  # the store knows better than an old record of Prefect's
    note_accepted(workspace, label, ref, found.accepted)
    if label not in workspace.outcomes:
        cached = StageOutcome(ref=ref, how="cached", reason=reason, seconds=0.0)
        workspace.outcomes[label] = cached
        workspace.reached(label, stage, ref.key, "cached")
        workspace.listener.finished(label, cached)
    show_found(workspace, label, ref)
    return ref


def show_found(workspace: Workspace, label: str, ref: ArtifactRef) -> None:
    """Show a stage that this study found beside those it computed, so that its runs can be compared in one place.

    Found is also what another study asked a worker for while this one waited.
    """
    if workspace.journal is None or ref.key in workspace.shown:
        return
    workspace.shown.add(ref.key)
    manifest = workspace.store.manifest(ref.stage, ref.key)
    found = workspace.outcomes[label].how == "cached"
    if found or manifest.producer.annotations.get("study") != workspace.study:
        workspace.tracker.stage_found(manifest.model_copy(update={"label": label}))


def share_if_absent(shared: SharedStore, ref: ArtifactRef) -> None:
    """Upload an artifact that only this root has: from before there was a shared store, or from an outage of it."""
    if told := shared.share_if_absent(ref):
        logger.warning("%s", told)


def note_accepted(workspace: Workspace, label: str, ref: ArtifactRef, reason: str) -> None:
    """Remember, for the report, that a stage stands although its code changed; nothing to do if `reason` is empty."""
    if reason:
        seconds = workspace.store.manifest(ref.stage, ref.key).producer.seconds
        workspace.accepted[label] = AcceptedStage(
            label=label, stage=ref.stage, key=ref.key, seconds=round(seconds, 1), reason=reason
        )


def as_computed(store: Store, spec: StageSpec, kept: ArtifactRef) -> StageSpec:
    """The spec under which an accepted artifact was computed: Prefect's and MLflow's records of it go by that key."""
    return spec.model_copy(update={"key": kept.key, "components": store.manifest(kept.stage, kept.key).components})


@task(persist_result=True, result_serializer="json", cache_result_in_memory=False)
def stage_task(spec: StageSpec, workspace: Workspace, reason: str) -> dict[str, Any]:
    """One stage: computed here, or by a worker that is asked for it."""
    remote = workspace.dispatcher is not None and pool_of(spec.stage, spec.config)
    # An artifact that is there is not asked for: only its record is sent again.
    if remote and workspace.store.lookup(spec.stage, spec.key).ref is None:
        outcome = ask_worker(workspace, spec, reason)
    else:
        outcome = compute_here(workspace, spec, reason)
    workspace.outcomes[spec.label] = outcome
    workspace.reached(spec.label, spec.stage, outcome.ref.key, outcome.how)
    workspace.listener.finished(spec.label, outcome)
    return outcome.ref.model_dump()


def ask_worker(workspace: Workspace, spec: StageSpec, reason: str) -> StageOutcome:
    """Have a worker compute a stage; it also tells MLflow, under the run of this study."""
    if workspace.dispatcher is None:
        raise RuntimeError("a workspace that computes locally asks no worker")
    workspace.listener.started(spec.label, spec.stage, reason)
    request = StageRequest(
        spec=spec,
        study=workspace.study,
        model=workspace.model,
        parent_run=workspace.tracker.parent_run(),
        annotations=workspace.annotations(),
        reason=reason,
        commit=git_sha(),
    )
    try:
        return workspace.dispatcher.compute(workspace.store, request, workspace.listener)
    except BaseException as error:
        error.add_note(f"stage: {spec.label} ({spec.stage}/{spec.key[:12]})")
        workspace.listener.failed(spec.label, error)
        if isinstance(error, Exception) and not isinstance(error, ServerAway):  # else a worker may still be at it
            workspace.tracker.stage_abandoned(spec)
        raise


def compute_here(workspace: Workspace, spec: StageSpec, reason: str) -> StageOutcome:
    """Compute one stage in this process, with its record forwarded to MLflow and to whoever watches."""
    workspace.listener.started(spec.label, spec.stage, reason)
    page = prefect_url()
    notes = workspace.annotations() | ({"prefect_url": page} if page else {})
    workspace.tracker.stage_started(spec, notes)
    try:
        with shown_progress(spec) as show, measured(workspace.tracker, spec):

            def on_event(event: Event) -> None:
                workspace.listener.event(spec.label, event)
                workspace.tracker.stage_event(spec, event)
                show(event)

            python = stage_python(spec.config)
            run = run_stage if python is None else partial(run_elsewhere, python)
            outcome = run(workspace.store, spec, on_event, notes, reason)
    except BaseException as error:
        log = workspace.store.root / ".work" / f"{spec.stage}-{spec.key}.error.txt"
        with suppress(OSError):  # a full disk is told of by the error itself
            log.parent.mkdir(exist_ok=True)
            log.write_text(redact(traceback.format_exc()), encoding="utf-8")
        error.add_note(f"stage: {spec.label} ({spec.stage}/{spec.key[:12]}); traceback: {log}")
        workspace.listener.failed(spec.label, error)
        workspace.tracker.stage_failed(spec, stopped=exit_code_of(error) is not None)
        raise
    workspace.tracker.stage_finished(spec, outcome.ref, workspace.store.record(outcome.ref))
    if spec.stage == "grade":
        summary = (workspace.store.record(outcome.ref) / "summary.json").read_bytes()
        show_evaluation(spec.label, EvalReport.model_validate_json(summary))
    return outcome
