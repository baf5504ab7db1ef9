"""One stage of a study, for a worker with a GPU: what a study with `executor: work-pool` asks for.

Its parameters are made by `tasks.dispatch`; nobody writes them by hand.
"""

import socket
from typing import Any

from prefect import State, flow, runtime
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Failed

from alignment_core.failures import TOLD, HostError
from alignment_core.records import Failure
from alignment_core.stage import StageOutcome
from alignment_core.stage_process import other_code
from tasks.recovery import is_cancelling
from tasks.stage_progress import StageListener
from tasks.stage_request import StageRequest
from tasks.stages import compute_here
from tasks.workspace import git_sha, open_stage_workspace


@flow(name="stage")
def stage(request: StageRequest, root: str | None = None) -> dict[str, Any] | State[Any]:
    """Compute one stage, unless this host has other code or libraries than the study that asks.

    What fails for a reason that can be told ends in a state whose message has the kind of the failure, by which the
    study that asks judges it (`alignment_core.failures`); a bug is Prefect's to tell, with its traceback.

    Args:
        request: The stage, the study that asks for it, and why.
        root: Folder of the store and of mlruns; default: ALIGNFLOW_ROOT of the worker, else its working directory.
    """
    try:
        require_same_code(request)
        outcome = run_here(request, root)
    except (KeyboardInterrupt, TerminationSignal):
        if is_cancelling(runtime.flow_run.id or ""):
            return Cancelled(message="Saved, then stopped.")  # of itself Prefect would call it a crash, and retry it
        raise
    except TOLD as error:
        return Failed(message=Failure.of(error).line())
    return outcome.model_dump(mode="json")


def run_here(request: StageRequest, root: str | None) -> StageOutcome:
    """The stage, in a workspace of this host."""
    with (
        StageListener(request.spec.key, runtime.flow_run.id or "") as listener,
        open_stage_workspace(root, request.study, request.parent_run, request.annotations, listener) as workspace,
    ):
        return compute_here(workspace, request.spec, request.reason)


def require_same_code(request: StageRequest) -> None:
    """Raise HostError that names what differs between the code here and the code that asks."""
    if what := other_code(request.spec):
        raise HostError(
            f"host {socket.gethostname()} ({git_sha() or 'no commit'}) has other code or libraries than the study that "
            f"asks ({request.commit or 'no commit'}): {what}. Check out the same commit and install the same versions "
            "on both, then run the study again"
        )
