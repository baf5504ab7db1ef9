"""What a kill leaves behind in Prefect, closed by the next start on the same root."""

from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed


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


def _crash_task_runs(client: SyncPrefectClient, flow_run: UUID, message: str) -> None:
    for task in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))):
        if task.state is None or not task.state.is_final():
            client.set_task_run_state(task.id, Crashed(message=message), force=True)
