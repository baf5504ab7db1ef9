"""`alignflow status`: what runs where, from any machine that reaches Prefect's server."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType, Worker, WorkerStatus, WorkPool
from prefect.client.schemas.sorting import FlowRunSort
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from flows.host_setup import reachable_server
from tasks.dispatch import ACTIVE
from tasks.pools import POOLS, ZOMBIE_SECONDS
from tasks.stage_progress import read_progress
from tasks.stage_request import STAGE, STUDY

LIMIT = 200
ONLINE = WorkerStatus.ONLINE
COLOURS = {"RUNNING": "green", "CANCELLING": "yellow", "PAUSED": "yellow"}


@dataclass(frozen=True)
class Activity:
    """One flow run that has not ended."""

    name: str
    what: str
    """The stage, or the flow."""
    study: str
    state: str
    kind: str
    worker: str
    progress: str
    since: datetime | None


def show_status() -> Group:
    """The tables. Raises ValueError with the remedy if no server is set, or none answers."""
    server = reachable_server("alignflow status")
    with get_client(sync_client=True) as client:
        pools = read_pools(client)
        active = read_activity(client, {one.name for _, all_of in pools for one in all_of if one.status != ONLINE})
    now = datetime.now(UTC)
    return Group(f"Prefect server {server}", activity_table(active, now), pool_table(pools, active, now))


def read_activity(client: SyncPrefectClient, offline: Set[str]) -> list[Activity]:
    """Flow runs that have not ended, the longest running first; offline: names of workers that are gone."""
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=ACTIVE)))
    runs = client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.START_TIME_ASC, limit=LIMIT)
    flows = {run.flow_id: client.read_flow(run.flow_id).name for run in {run.flow_id: run for run in runs}.values()}
    shown = {
        one.flow_run_id: one.description or "" for one in reversed(read_progress(client, [run.id for run in runs]))
    }
    return [activity(run, flows[run.flow_id], shown.get(run.id, ""), offline) for run in runs]


def activity(run: FlowRun, flow: str, progress: str, offline: Set[str] = frozenset()) -> Activity:
    """A flow run as `status` tells of it."""
    tagged = {kind: next((tag[len(kind) :] for tag in run.tags if tag.startswith(kind)), "") for kind in (STAGE, STUDY)}
    name = str((run.labels or {}).get("prefect.worker.name", ""))
    name += " (offline)" if name in offline else ""
    by_hand = "" if run.deployment_id else "by hand"
    return Activity(
        name=run.name,
        what=tagged[STAGE] or flow,
        study=tagged[STUDY],
        state=run.state.name or "" if run.state is not None else "",
        kind=run.state.type.value if run.state is not None else "",
        worker=name or by_hand or f"pool {run.work_pool_name}",
        progress=progress,
        since=run.start_time or run.expected_start_time,
    )


def read_pools(client: SyncPrefectClient) -> list[tuple[WorkPool, list[Worker]]]:
    """Our pools, with their workers; ValueError if there are none."""
    found = [pool for pool in client.read_work_pools() if pool.name in POOLS]
    if not found:
        raise ValueError("this Prefect server has none of the pools " + ", ".join(POOLS) + ": run `alignflow setup`")
    return [(pool, client.read_workers_for_work_pool(pool.name)) for pool in sorted(found, key=_place)]


def _place(pool: WorkPool) -> int:
    return POOLS.index(pool.name)


def activity_table(active: Sequence[Activity], now: datetime) -> Table:
    """What runs, or waits."""
    table = Table(box=box.SIMPLE_HEAD, title="flow runs", title_justify="left")
    for column in ("what", "run", "state", "worker", "progress", "since"):
        table.add_column(column, overflow="fold", no_wrap=column in {"what", "state", "since"})
    for one in active:
        colour = COLOURS.get(one.kind, "dim")
        cells = [one.what, one.name, f"[{colour}]{escape(one.state)}[/{colour}]", one.worker, one.progress]
        table.add_row(*(cell if cell.startswith("[") else escape(cell) for cell in cells), ago(one.since, now))
    if not active:
        table.add_row("nothing runs", *[""] * 5)
    return table


def pool_table(pools: Sequence[tuple[WorkPool, list[Worker]]], active: Sequence[Activity], now: datetime) -> Table:
    """Who serves which pool, who is busy, and who is gone."""
    table = Table(box=box.SIMPLE_HEAD, title="pools", title_justify="left")
    for column in ("pool", "at once", "worker", "state", "last sign of life"):
        table.add_column(column, overflow="fold")
    busy = {one.worker for one in active if one.kind == StateType.RUNNING.value}
    for pool, workers in pools:
        limit = "paused" if pool.is_paused else str(pool.concurrency_limit or "any")
        for worker in sorted(workers, key=lambda one: one.name):
            table.add_row(pool.name, limit, escape(worker.name), _worker_state(worker, busy), _last(worker, now))
        if not workers:
            table.add_row(pool.name, limit, "none", "[yellow]nobody serves it[/yellow]", "")
    return table


def _worker_state(worker: Worker, busy: set[str]) -> str:
    if worker.status != ONLINE:
        return "[red]offline[/red]"
    return "[green]busy[/green]" if worker.name in busy else "idle"


def _last(worker: Worker, now: datetime) -> str:
    stale = worker.last_heartbeat_time is not None and now - worker.last_heartbeat_time > timedelta(
        seconds=ZOMBIE_SECONDS
    )
    return f"[red]{ago(worker.last_heartbeat_time, now)}[/red]" if stale else ago(worker.last_heartbeat_time, now)


def ago(then: datetime | None, now: datetime) -> str:
    """Time since, in its largest unit that is not 0: 45 s, 3 min, 2.5 h."""
    if then is None:
        return ""
    seconds = max((now - then).total_seconds(), 0.0)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
