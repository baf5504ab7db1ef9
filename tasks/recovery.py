"""What kills and outages leave behind, in Prefect and in MLflow, put right by the next start on the same root."""

from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from alignment_core.stage import spec_of
from alignment_core.store import Store
from tasks.mlflow_format import pending_marker
from tasks.tracker import Tracker


def send_unsent(root: Path, store: Store, tracker: Tracker, study: str) -> None:
    """Send MLflow the records of this study's finished stages that an outage, or a kill, kept from it."""
    for marker in pending_marker(root, "any").parent.glob("*"):
        for manifest in store.manifests_of(marker.name):
            if manifest.producer.annotations.get("study") == study:
                spec, ref = spec_of(manifest), manifest.ref()
                tracker.stage_started(spec, manifest.producer.annotations)
                tracker.stage_finished(spec, ref, store.record(ref))


def crash_flow_run(flow_run: str, message: str) -> bool:
    """Set a flow run, and its task runs, to Crashed if Prefect still holds them for running.

    Returns whether there was anything to close; a flow run that this server does not know is nothing.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_flow_run(UUID(flow_run))
        except ObjectNotFound:
            return False
        if found.state is not None and found.state.is_final():
            return False
        _crash_task_runs(client, found.id, message)
        client.set_flow_run_state(found.id, Crashed(message=message), force=True)
    return True


def is_cancelling(flow_run: str) -> bool:
    """Whether somebody asked Prefect to cancel a flow run."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(flow_run)).state
    return state is not None and state.is_cancelling()


def _crash_task_runs(client: SyncPrefectClient, flow_run: UUID, message: str) -> None:
    for task in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))):
        if task.state is None or not task.state.is_final():
            client.set_task_run_state(task.id, Crashed(message=message), force=True)
