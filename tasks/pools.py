"""Work pools and what all who use them agree on: names, which stages go where, one heartbeat."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings

Executor = Literal["local", "work-pool"]
"""Where the stages that need torch run: in the process of the study, or on whichever worker is free."""

CPU_POOL = "cpu"
GPU_POOL = "h100"
MULTI_POOL = "h100-multi"
"""Of workers that see several GPUs; its GPUs are not also those of a worker of `GPU_POOL`."""
GPU_POOLS = frozenset({GPU_POOL, MULTI_POOL})
POOLS = (CPU_POOL, GPU_POOL, MULTI_POOL)

GPU_STAGES = frozenset({"import_model", "pretrain", "sample", "sft", "grpo", "dpo"})
"""The stages that import torch, so that the process of a study never does. `import_model` is among them although it
computes nothing: the checkpoint lies, or is downloaded to, where it will be loaded."""

HEARTBEAT_SECONDS = 30
"""Between two signs of life of a flow run; the least Prefect allows."""
ZOMBIE_SECONDS = 4 * HEARTBEAT_SECONDS
"""Without a sign of life a flow run counts as crashed after this long: one heartbeat may be late, or lost."""
HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"


def pool_of(stage: str, settings: Mapping[str, Any]) -> str:
    """The pool that a stage with these settings is asked of; empty if it runs where the study does."""
    if stage not in GPU_STAGES:
        return ""
    return MULTI_POOL if wanted_processes(settings) > 1 else GPU_POOL


def wanted_processes(settings: Mapping[str, Any]) -> int:
    """Processes, of one GPU each, that a stage trains with."""
    return int(settings.get("processes") or 1)


def own_pool() -> str:
    """The pool whose worker runs the present flow run; empty if it was started by hand."""
    if not runtime.flow_run.id:
        return ""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(runtime.flow_run.id).work_pool_name or ""


def require_server(purpose: str) -> str:
    """The URL of the Prefect server that is set; ValueError if none is."""
    url = get_current_settings().api.url
    if not url:
        raise ValueError(
            f"{purpose} needs a Prefect server that the workers know too: start one with `prefect server start`, then "
            "set PREFECT_API_URL, e.g. to http://127.0.0.1:4200/api, here and where the workers run"
        )
    return url


@contextmanager
def refusals_told() -> Iterator[None]:
    """Make a ValueError with the remedy of a Prefect server's 401 or 403."""
    try:
        yield
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        if code not in (401, 403):
            raise
        url = error.request.url.copy_with(path="/api", query=None)
        raise ValueError(
            f"Prefect's server at {url} refuses this host ({code}): set PREFECT_API_AUTH_STRING to the server's own, "
            "user:password"
        ) from error
