"""`alignflow setup`: what a Prefect server has to hold before the first run, made once and found again after."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from flows.checkout import CHECKOUT
from tasks.pools import HEARTBEAT, HEARTBEAT_SECONDS, POOLS, ZOMBIE_SECONDS, refusals_told, require_server

ZOMBIES = "alignflow: flow runs without a sign of life have crashed"
TAG = "prefect.tag.alignflow"
ENDS = ("Completed", "Failed", "Cancelled", "Crashed")


def set_up(limits: Mapping[str, int]) -> Iterator[str]:
    """Pools, the automation, the deployments of prefect.yaml; a line for each, saying whether it was there.

    limits: flow runs at once, by pool, for those whose limit is to change. Raises ValueError with the remedy if no
    server is set, or none answers, or a limit names no pool.
    """
    server = reachable_server("alignflow setup")
    require_one_heartbeat(os.environ)
    definitions = read_definitions()
    for pool in set(limits) - set(POOLS):
        raise ValueError(f"--limit {pool}={limits[pool]}: there is no pool {pool!r}, only {', '.join(POOLS)}")
    yield f"Prefect server {server}"
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            yield set_up_pool(client, pool, int(definitions["limits"][pool]), limits.get(pool))
        yield set_up_automation(client)
        before = _deployments(client)
        _deploy_all()
        after = _deployments(client)
    yield f"deployments    {len(after - before)} created, {len(after & before)} brought up to date, from prefect.yaml"


def reachable_server(purpose: str) -> str:
    """The URL of a Prefect server that is set, answers and knows us; ValueError with the remedy otherwise."""
    server = require_server(purpose)
    with get_client(sync_client=True) as client:
        if (problem := client.api_healthcheck()) is not None:
            raise ValueError(
                f"Prefect's server at {server} does not answer ({problem or type(problem).__name__}): start it with "
                "`prefect server start`, or set PREFECT_API_URL to where it is"
            )
        with refusals_told():  # whether it is well it tells everybody
            client.read_work_pools(limit=1)
    return server


def require_one_heartbeat(environment: Mapping[str, str]) -> None:
    """Raise ValueError if the environment sets another heartbeat than the automation counts on."""
    told = environment.get(HEARTBEAT, str(HEARTBEAT_SECONDS))
    if told != str(HEARTBEAT_SECONDS):
        raise ValueError(
            f"{HEARTBEAT}={told}: all flow runs must beat every {HEARTBEAT_SECONDS} s, or healthy ones count as "
            f"dead after {ZOMBIE_SECONDS} s: unset it"
        )


def read_definitions() -> dict[str, Any]:
    """`definitions` of prefect.yaml; ValueError if there is no checkout, or its heartbeat is another."""
    path = CHECKOUT / "prefect.yaml"
    if not path.is_file():
        raise ValueError(f"no {path}: install alignflow from its checkout (`python3 -m flows.bootstrap install`)")
    definitions: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["definitions"]
    for pool in definitions["pools"].values():
        require_one_heartbeat(pool["job_variables"]["env"])
    return definitions


def set_up_pool(client: SyncPrefectClient, name: str, default: int, wanted: int | None) -> str:
    """Make a process pool; one that is there keeps its limit unless another is wanted."""
    try:
        there = client.read_work_pool(name)
    except ObjectNotFound:
        limit = wanted or default
        client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=limit))
        return f"pool {name:10} created, {limit} flow runs at once"
    if there.type != "process":
        raise ValueError(f"pool {name} is of type {there.type!r}, not process: rename it, then run this again")
    if wanted is None or wanted == there.concurrency_limit:
        return f"pool {name:10} was there, {there.concurrency_limit or 'any number of'} flow runs at once"
    client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=wanted))
    return f"pool {name:10} was there, {wanted} flow runs at once instead of {there.concurrency_limit or 'any number'}"


def set_up_automation(client: SyncPrefectClient) -> str:
    """What makes a flow run of ours crash whose process is gone: only then is it retried, and its slot free."""
    wanted = zombie_automation()
    found = client.read_automations_by_name(ZOMBIES)
    if not found:
        client.create_automation(wanted)
        return f"automation     created: no sign of life for {ZOMBIE_SECONDS} s is a crash"
    fields = {"enabled", "trigger", "actions"}
    there = AutomationCore(**{name: getattr(found[0], name) for name in AutomationCore.model_fields})
    if _essence(there, fields) == _essence(wanted, fields):
        return f"automation     was there: no sign of life for {ZOMBIE_SECONDS} s is a crash"
    client.update_automation(found[0].id, wanted)
    return f"automation     changed: no sign of life for {ZOMBIE_SECONDS} s is a crash"


def zombie_automation() -> AutomationCore:
    """Crashed, for a flow run with our tag that has beaten once and then neither beats nor ends."""
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{name}" for name in ENDS)},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        match_related=ResourceSpecification({"prefect.resource.id": [TAG], "prefect.resource.role": ["tag"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=ZOMBIE_SECONDS),
    )
    message = f"No sign of life for {ZOMBIE_SECONDS} s: its process, its worker or its host is gone."
    return AutomationCore(
        name=ZOMBIES,
        description="Frees the slot of what died, and lets the study that asked for it ask again.",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message)],
    )


def _essence(automation: AutomationCore, fields: set[str]) -> dict[str, Any]:
    """What two automations are compared by, lists of sets in one order."""
    dumped = automation.model_dump(mode="json", include=fields)
    dumped["trigger"] = {
        name: sorted(map(str, value)) if isinstance(value, list) else value
        for name, value in dumped["trigger"].items()
        if name != "id"
    }
    return dumped


def _deployments(client: SyncPrefectClient) -> set[str]:
    return {str(one.id) for one in client.read_deployments(limit=200)}


def _deploy_all() -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise ValueError(f"`prefect deploy --all` in {CHECKOUT} failed:\n{last}")
