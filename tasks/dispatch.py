"""Stages on other hosts: a flow run per stage in a GPU pool, found or made, and watched to its end.

A flow run that computes a stage has the tag `stage-key:<key>`. Whoever wants that stage attaches to one that is
active, else makes one; two who make it at once get the same one, by its idempotency key. Whoever made it cancels it on
Ctrl-C and SIGTERM; one that is killed leaves it running, and is attached to by the next start.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import NoReturn, TypeVar
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError, TerminationSignal
from prefect.states import Cancelled, Cancelling, Crashed

from alignment_core.events import Event
from alignment_core.failures import HostError, MemberError
from alignment_core.operation import number_setting
from alignment_core.records import Failure
from alignment_core.redaction import redact
from alignment_core.stage import StageOutcome
from alignment_core.store import Store
from tasks.pools import GPU_POOL, MULTI_POOL, pool_of, require_server
from tasks.progress import Listener
from tasks.stage_progress import StageNews
from tasks.stage_request import STAGE_KEY, StageRequest

ACTIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
ASKED_BY = "alignflow.asked-by"
"""Label of a flow run: who made it, and so may cancel it."""
STORE_SECONDS = 60.0
"""Longest wait until the artifact of a stage that has ended is seen here: shared folders show new files late."""
CANCEL_SECONDS = 20.0
"""Longest wait until a cancelled stage has saved and ended; it does so without us, too."""
STUCK_SECONDS = 300.0
"""A flow run that was taken but has not begun, or was told to stop but has not ended, for so long has lost its worker.
The zombie automation does not see it: no first heartbeat came whose absence could be felt."""
QUIET_SECONDS = 60.0
"""Between two lines that say why a stage still waits."""
T = TypeVar("T")


class RemoteStageError(HostError):
    """A stage could not be had from a worker; the message names the remedy."""


class ServerAway(HostError):
    """Prefect's server does not answer; whether a worker is at the stage is not known."""


@dataclass(frozen=True)
class Patience:
    """How stages on other hosts are waited for; each field is set by the environment variable named in `read`."""

    poll: float = 5.0
    """Seconds between two looks at a flow run."""
    deadline: float = 168.0
    """Hours a stage may take, queueing included, before the study gives up on it; it is left running."""
    attempts: int = 3
    """Flow runs made for one stage if they crash."""
    outage: float = 30.0
    """Minutes without an answer of Prefect's server that are waited through."""

    @classmethod
    def read(cls) -> "Patience":
        """From the environment; ValueError for what is no positive number."""
        return cls(
            poll=_positive("ALIGNFLOW_POLL_SECONDS", cls.poll),
            deadline=_positive("ALIGNFLOW_STAGE_HOURS", cls.deadline),
            attempts=int(_positive("ALIGNFLOW_STAGE_ATTEMPTS", cls.attempts)),
            outage=_positive("ALIGNFLOW_OUTAGE_MINUTES", cls.outage),
        )


def _positive(name: str, default: float) -> float:
    value = number_setting(name, default, kind="number above 0")
    if value == 0:
        raise ValueError(f"{name}=0 is no number above 0: set e.g. {default:g}, or unset it")
    return value


class Dispatcher:
    """Asks workers for the stages that need torch."""

    def __init__(self, patience: Patience | None = None) -> None:
        """Raises ValueError if no Prefect server is set."""
        self.server = require_server("--executor work-pool")
        self.patience = patience or Patience.read()
        self._name = uuid4().hex
        self.stopping = threading.Event()
        """Set when the study is to end: every watch in every thread then cancels what it made."""

    def compute(self, store: Store, request: StageRequest, listener: Listener) -> StageOutcome:
        """The artifact of a stage that a worker computes.

        If the stage fails there: raises what it raised, by its kind (`alignment_core.failures`), RuntimeError for a
        bug. MemberError if it is cancelled or crashes too often, which need not happen to others; RemoteStageError if
        it cannot be had, ServerAway if the server is.
        """
        asked, crashes = time.time(), 0
        while True:
            run, made = self._attach_or_submit(request)
            verb = "asked of" if made else "is already with"
            _say(listener, request, f"{verb} pool {run.work_pool_name} as {run.name} ({run.id})")
            ended = self._watch(run.id, made, request, listener)
            state = ended.state
            if state is None or state.is_completed():
                return self._outcome(store, request, ended, asked)
            where = worker_of(ended)
            if state.is_crashed() and (crashes := crashes + 1) < self.patience.attempts:
                why = f"crashed on {where} ({(state.message or '').partition('. ')[0]})"
                _say(listener, request, f"{why}: attempt {crashes + 1} of {self.patience.attempts}")
            elif state.is_cancelled() and not made:
                _say(listener, request, "was cancelled by whoever began it: it is asked for again")
            else:
                self._fail(request, ended, where, crashes)

    def _fail(self, request: StageRequest, ended: FlowRun, where: str, crashes: int) -> NoReturn:
        state = ended.state
        message = (state.message if state is not None else None) or "no reason was given"
        error: Exception
        if state is not None and state.is_crashed():
            error = MemberError(
                f"{request.spec.label} crashed {crashes} times, last on {where}: {message}. See the log of its worker"
            )
        elif state is not None and state.is_cancelled():
            error = MemberError(
                f"{request.spec.label} was cancelled: {message}. Run the study again to go on where it stopped"
            )
        else:
            told = Failure.read(message)
            error = told.error() if told is not None else RuntimeError(bug_message(message))
        error.add_note(f"on {where}; its log: {self.server.removesuffix('/api')}/runs/flow-run/{ended.id}")
        raise error

    def _attach_or_submit(self, request: StageRequest) -> tuple[FlowRun, bool]:
        """The flow run that computes the stage, and whether it was made here."""

        def find(client: SyncPrefectClient) -> tuple[FlowRun, bool]:
            # One look for both: whoever sees no active one among as many runs asks by the same idempotency key.
            runs = _runs_of(client, request)
            if active := [run for run in runs if run.state is not None and run.state.type in ACTIVE]:
                return active[0], False
            deployment = self._deployment(client, pool_of(request.spec.stage, request.spec.config))
            previous = len(runs)
            while True:
                run = client.create_flow_run_from_deployment(
                    deployment,
                    parameters={"request": request.model_dump(mode="json")},
                    name=request.name(),
                    tags=request.tags(),
                    idempotency_key=f"{request.spec.key}:{previous}",
                    labels={ASKED_BY: self._name},
                )
                if run.state is None or not run.state.is_final():
                    return run, run.labels.get(ASKED_BY) == self._name  # another may have made it just before
                previous += 1  # flow runs of this stage were deleted, so that the count names an old one

        return self._ask(find)

    def _deployment(self, client: SyncPrefectClient, pool: str) -> UUID:
        try:
            return client.read_deployment_by_name(f"stage/{pool}").id
        except ObjectNotFound as error:
            raise RemoteStageError(
                f"Prefect's server at {self.server} has no deployment stage/{pool}: run `alignflow setup` once"
            ) from error

    def _watch(self, run: UUID, made: bool, request: StageRequest, listener: Listener) -> FlowRun:
        """The flow run in its final state; what it tells on its way goes to the listener."""
        try:
            return self._look_until_ended(run, request, listener)
        except ObjectNotFound as error:
            raise RemoteStageError(
                f"{request.spec.label}: its flow run {run} was deleted from Prefect's server while it was waited for. "
                "Run the study again: what its worker computed meanwhile is found"
            ) from error
        except (KeyboardInterrupt, TerminationSignal):
            self.stopping.set()
            if made:
                self._cancel(run)
            raise

    def _look_until_ended(self, run: UUID, request: StageRequest, listener: Listener) -> FlowRun:
        began, told = time.monotonic(), 0.0
        news = StageNews(run)
        while True:
            seen, events = self._ask(lambda client: (client.read_flow_run(run), news.read(client)))
            for event in events:
                listener.event(request.spec.label, event)
            if seen.state is not None and seen.state.is_final():
                return seen
            if is_stuck(seen):
                self._ask(partial(end_stuck, run=seen))
            waited = time.monotonic() - began
            quiet = waited > 2 * self.patience.poll and time.monotonic() - told > QUIET_SECONDS
            if quiet and (why := self._ask(partial(why_waiting, run=seen))):
                _say(listener, request, why)
                told = time.monotonic()
            self._require_in_time(waited, request, seen)
            if self.stopping.wait(self.patience.poll):
                raise KeyboardInterrupt

    def _require_in_time(self, waited: float, request: StageRequest, seen: FlowRun) -> None:
        if waited > self.patience.deadline * 3600:
            raise RemoteStageError(
                f"{request.spec.label} is {seen.state_name} after {self.patience.deadline:g} hours. It is left as it "
                "is, and the next start finds it; ALIGNFLOW_STAGE_HOURS sets another deadline"
            )

    def _cancel(self, run: UUID) -> None:
        """Have the worker stop a stage, which saves first; wait a little for it."""
        with suppress(httpx.HTTPError, PrefectHTTPStatusError), get_client(sync_client=True) as client:
            client.set_flow_run_state(run, Cancelling(message="The study that asked for it was stopped."))
            deadline = time.monotonic() + CANCEL_SECONDS
            while time.monotonic() < deadline:
                state = client.read_flow_run(run).state
                if state is None or state.is_final():
                    return
                time.sleep(1)

    def _outcome(self, store: Store, request: StageRequest, ended: FlowRun, asked: float) -> StageOutcome:
        spec, deadline = request.spec, time.monotonic() + STORE_SECONDS
        while (found := store.lookup(spec.stage, spec.key)).ref is None:
            if time.monotonic() > deadline:
                raise RemoteStageError(
                    f"{spec.label} was computed on {worker_of(ended)}, but the store here ({store.root}) does not have "
                    "it: give the workers and this command the same ALIGNFLOW_STORE"
                )
            time.sleep(1)
        producer = store.manifest(found.ref.stage, found.ref.key).producer
        how = "ran" if producer.resumed_from_step is None else "resumed"
        reason = f"{request.reason}; on {worker_of(ended)}"
        return StageOutcome(ref=found.ref, how=how, reason=reason, seconds=time.time() - asked)

    def _ask(self, question: Callable[[SyncPrefectClient], T]) -> T:
        """An answer of Prefect's server; a server that is away is asked again until patience ends."""
        deadline = time.monotonic() + 60 * self.patience.outage
        while True:
            try:
                with get_client(sync_client=True) as client:
                    return question(client)
            except (httpx.TransportError, PrefectHTTPStatusError) as error:
                gone = isinstance(error, httpx.TransportError) or error.response.status_code >= 500
                if not gone:
                    raise
                if time.monotonic() > deadline:
                    raise ServerAway(
                        f"Prefect's server at {redact(self.server)} does not answer ({redact(str(error))}): start it "
                        "again, then run the study again. What its workers compute meanwhile is found"
                    ) from error
            if self.stopping.wait(self.patience.poll):
                raise KeyboardInterrupt


def _runs_of(client: SyncPrefectClient, request: StageRequest) -> list[FlowRun]:
    """The flow runs that were made for a stage; the newest come first, for the server answers with 200 at most."""
    tags = FlowRunFilterTags(all_=[f"{STAGE_KEY}{request.spec.key}"])
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=tags), sort=FlowRunSort.EXPECTED_START_TIME_DESC)


def is_stuck(run: FlowRun) -> bool:
    """Whether a flow run stands between two states for longer than any worker takes."""
    state = run.state
    if state is None or state.type not in (StateType.PENDING, StateType.CANCELLING):
        return False
    return (datetime.now(UTC) - state.timestamp).total_seconds() > STUCK_SECONDS


def end_stuck(client: SyncPrefectClient, run: FlowRun) -> None:
    """Set a stuck flow run to Crashed, or to Cancelled if that was asked of it."""
    cancelling = run.state is not None and run.state.type == StateType.CANCELLING
    why = f"it stayed {run.state_name} for {STUCK_SECONDS:.0f} s: its worker has gone"
    client.set_flow_run_state(run.id, Cancelled(message=why) if cancelling else Crashed(message=why), force=True)


def _say(listener: Listener, request: StageRequest, text: str) -> None:
    listener.event(request.spec.label, Event(kind="say", step=0, time=time.time(), name=text))


def worker_of(run: FlowRun) -> str:
    """Name of the worker that took a flow run, for people."""
    return str((run.labels or {}).get("prefect.worker.name", "a worker"))


def bug_message(text: str) -> str:
    """Class and message of the error that ended a flow run, without what Prefect puts before them."""
    return text.removeprefix("Flow run encountered an exception").lstrip(":. ")


def why_waiting(client: SyncPrefectClient, run: FlowRun) -> str:
    """Why a flow run has not begun; empty if it has."""
    pool = run.work_pool_name or ""
    if run.state is None or run.state.type != StateType.SCHEDULED or not pool:
        return ""
    if client.read_work_pool(pool).is_paused:
        return f"waits: pool {pool} is paused; `prefect work-pool resume {pool}` lets it go on"
    online = [one for one in client.read_workers_for_work_pool(pool) if one.status == WorkerStatus.ONLINE]
    if online:
        return f"waits for a free worker of pool {pool} ({len(online)} online)"
    option = {GPU_POOL: "--gpu 0", MULTI_POOL: "--multi 0,1"}.get(pool, "--cpu 1")
    return f"no worker polls pool {pool}: start one with `alignflow worker {option}`"
