"""Who is asked for a stage, how often, and what is told of it: against a server that plays along."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State, WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Crashed, Pending, Running, Scheduled, exception_to_failed_state

from alignment_core.config import ArithmeticConfig, DataConfig
from alignment_core.events import Event
from alignment_core.failures import HostError, MemberError
from alignment_core.manifest import ManifestDraft, Producer
from alignment_core.records import Failure
from alignment_core.remote import StoreUnreachable
from alignment_core.stage import StageSpec, make_spec
from alignment_core.stage_config import ImportModelStage, PrepareStage
from alignment_core.stages import prepare as prepare_stage
from alignment_core.store import Store
from flows.stage import require_same_code, stage
from tasks import dispatch, pools, workspace
from tasks.dispatch import ASKED_BY, Dispatcher, Patience, RemoteStageError, bug_message
from tasks.pools import GPU_POOL, MULTI_POOL, pool_of
from tasks.progress import LogListener
from tasks.stage_request import StageRequest

SPEC = make_spec("import_model", ImportModelStage(source="owner/model"), {}, "base model")
REQUEST = StageRequest(spec=SPEC, study="tiny", model="owner/model", annotations={"run": "r"}, reason="first run")
NOTHING = DataConfig(arithmetic=ArithmeticConfig(max_total=2, step_shares=(1.0,), train=8, dev=4, test=4))
IMPOSSIBLE = StageRequest(
    spec=make_spec("prepare", PrepareStage(data=NOTHING, template="Q: {question}", seed=0), {}, "prepare"),
    study="tiny",
)
"""It asks for what there is none of: a member's own fault."""


class Server:
    """Answers as Prefect's does; each flow run made takes the next course of states."""

    def __init__(self, *courses: list[State[Any]]) -> None:
        self.courses = [list(course) for course in courses]
        self.runs: list[FlowRun] = []
        self.made: list[dict[str, Any]] = []
        self.outages = 0
        self.pools: set[str] = {GPU_POOL}
        self.workers: list[Any] = []
        self.on_end: Any = lambda: None
        self.forgets = False
        """Whether the flow run that is looked at has been deleted."""

    def add(self, course: list[State[Any]]) -> FlowRun:
        """A flow run of this stage that somebody else has made."""
        self.courses.insert(len(self.runs), course)
        return self._run(f"run {len(self.runs)}")

    def _run(self, name: str) -> FlowRun:
        state = self.courses[len(self.runs)][0]
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name=name, state=state, work_pool_name=GPU_POOL)
        run.labels = {"prefect.worker.name": "host-gpu0"}
        self.runs.append(run)
        return run

    def read_flow_runs(self, **_options: Any) -> list[FlowRun]:
        return list(self.runs)

    def read_deployment_by_name(self, name: str) -> Any:
        if name.removeprefix("stage/") not in self.pools:
            raise ObjectNotFound(http_exc=RuntimeError(name))
        return type("Deployment", (), {"id": uuid4()})()

    def create_flow_run_from_deployment(self, deployment: UUID, **options: Any) -> FlowRun:
        same = [i for i, one in enumerate(self.made) if one["idempotency_key"] == options["idempotency_key"]]
        if same:
            return self.runs[same[0]]
        self.made.append(options)
        run = self._run(options["name"])
        run.labels |= options["labels"]
        return run

    def read_flow_run(self, run_id: UUID) -> FlowRun:
        if self.outages:
            self.outages -= 1
            raise httpx.ConnectError("refused")
        if self.forgets:
            raise ObjectNotFound(http_exc=RuntimeError(str(run_id)))
        index = next(i for i, run in enumerate(self.runs) if run.id == run_id)
        course = self.courses[index]
        self.runs[index].state = course.pop(0) if len(course) > 1 else course[0]
        if course[0].is_final():
            self.on_end()
        return self.runs[index]

    def set_flow_run_state(self, run_id: UUID, state: State[Any], force: bool = False) -> None:
        index = next(i for i, run in enumerate(self.runs) if run.id == run_id)
        self.courses[index] = [state] if force else [state, Cancelled(message="as asked")]

    def read_logs(self, *_arguments: Any, **_options: Any) -> list[Any]:
        return []

    def read_artifacts(self, **_options: Any) -> list[Any]:
        return []

    def read_work_pool(self, _name: str) -> Any:
        return type("Pool", (), {"is_paused": False})()

    def read_workers_for_work_pool(self, _name: str) -> list[Any]:
        return self.workers


class Heard(LogListener):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def event(self, label: str, event: Event) -> None:
        self.lines.append(event.name)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty one."""
    return Store(tmp_path / "store")


def publish(store: Store, spec: StageSpec = SPEC) -> None:
    """The artifact, as a worker would have left it."""
    source = store.root / ".work" / "x"
    source.mkdir(parents=True)
    (source / "identity.json").write_text("{}")
    producer = Producer(started=0.0, seconds=1.0, host="there", resumed_from_step=3)
    names = {"stage": spec.stage, "key": spec.key, "label": spec.label}
    store.publish(source, ManifestDraft(**names, components=spec.components, parents={}, producer=producer))


@contextmanager
def served_by(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    stopping: bool = False,
    deadline: float = 1.0,
    outage: float = 30.0,
) -> Iterator[Dispatcher]:
    """A dispatcher whose server is that one; deadline: hours; outage: minutes."""

    @contextmanager
    def client(**_options: Any) -> Iterator[Server]:
        yield server

    monkeypatch.setattr(dispatch, "get_client", client)
    monkeypatch.setattr(dispatch, "require_server", lambda _purpose: "http://there/api")
    dispatcher = Dispatcher(Patience(poll=0.01, deadline=deadline, outage=outage))
    if stopping:
        dispatcher.stopping.set()
    yield dispatcher


def test_a_stage_is_asked_for_by_its_key_and_its_artifact_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    server, heard = Server([Scheduled(), Running(), Completed()]), Heard()
    server.on_end = lambda: publish(store)
    with served_by(server, monkeypatch) as dispatcher:
        outcome = dispatcher.compute(store, REQUEST, heard)
    (made,) = server.made
    assert made["idempotency_key"] == f"{SPEC.key}:0"
    assert f"stage-key:{SPEC.key}" in made["tags"]
    assert made["name"] == "tiny model base model"
    assert StageRequest.model_validate(made["parameters"]["request"]) == REQUEST
    assert (outcome.ref.key, outcome.how, outcome.reason) == (SPEC.key, "resumed", "first run; on host-gpu0")


def test_one_that_is_active_is_attached_to(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    server, heard = Server(), Heard()
    there = server.add([Running(), Completed()])
    publish(store)
    with served_by(server, monkeypatch) as dispatcher:
        dispatcher.compute(store, REQUEST, heard)
    assert not server.made
    assert f"is already with pool h100 as run 0 ({there.id})" in heard.lines[0]


def test_a_crash_is_retried_a_few_times_under_new_keys_and_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = [Running(), Crashed(message="status -9")]
    server, heard = Server(crash, crash, crash), Heard()
    with served_by(server, monkeypatch) as dispatcher, pytest.raises(MemberError, match="crashed 3") as caught:
        dispatcher.compute(store, REQUEST, heard)
    assert [one["idempotency_key"].rpartition(":")[2] for one in server.made] == ["0", "1", "2"]
    assert "crashed on host-gpu0 (status -9): attempt 2 of 3" in heard.lines
    assert "status -9" in str(caught.value)
    assert "http://there/runs/flow-run/" in caught.value.__notes__[0]


def on_worker(request: StageRequest, root: Path) -> State[Any]:
    """The state in which the flow `stage` ends there, as Prefect's server has it: with a message and no data."""
    try:
        state = stage.fn(request, str(root))
    except Exception as error:  # Prefect's to tell
        state = asyncio.run(exception_to_failed_state(error, message="Flow run encountered an exception:"))
    assert isinstance(state, State)
    return State(type=state.type, name=state.name, message=state.message)


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (None, ValueError, "no train problem of 1 steps within arithmetic.max_total 2: raise it"),
        (MemoryError("out of memory: lower it"), MemoryError, "out of memory: lower it"),
        (MemberError("http://me:secret@there: other weights"), MemberError, "http://***@there: other weights"),
        (StoreUnreachable("no store"), HostError, "no store"),
        (TypeError("a bug"), RuntimeError, "TypeError: a bug"),
        (RuntimeError("a bug: here"), RuntimeError, "RuntimeError: a bug: here"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_on_a_worker_is_of_its_kind_here_and_not_retried(
    raised: Exception | None,
    kind: type[Exception],
    words: str,
    tmp_path: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*_: Any) -> None:
        assert raised is not None
        raise raised

    monkeypatch.setattr(workspace, "Tracker", MagicMock())  # MLflow's database takes seconds to make
    if raised is not None:
        monkeypatch.setattr(prepare_stage, "run", run)
    ended = on_worker(IMPOSSIBLE, tmp_path / "worker")
    assert ended.is_failed()
    server = Server([Running(), ended])
    server.pools.add("")  # a stage that needs no torch belongs to none
    with served_by(server, monkeypatch) as dispatcher, pytest.raises(kind) as caught:
        dispatcher.compute(store, IMPOSSIBLE, Heard())
    assert type(caught.value) is kind
    assert str(caught.value).startswith(words)
    assert caught.value.__notes__[0].startswith("on host-gpu0; its log: http://there/runs/flow-run/")
    assert len(server.made) == 1


@pytest.mark.parametrize("lack", ["code", "root", "environment"])
def test_what_a_host_lacks_is_no_member_s_fault(lack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, root = IMPOSSIBLE, tmp_path
    if lack == "code":
        request = request.model_copy(update={"spec": request.spec.model_copy(update={"key": "0" * 64})})
    elif lack == "root":
        (root := tmp_path / "file").touch()
    else:
        monkeypatch.setenv("ALIGNFLOW_MLFLOW_WAIT", "long")
    told = Failure.read(on_worker(request, root).message or "")
    assert told is not None
    assert told.kind == "HostError"


def test_a_server_that_stays_away_is_told_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([Running()])
    server.outages = 10**6
    with (
        served_by(server, monkeypatch, outage=1e-3) as dispatcher,
        pytest.raises(HostError, match=r"^Prefect's server at http://there/api does not answer \(refused\): start it"),
    ):
        dispatcher.compute(store, REQUEST, Heard())


def test_what_prefect_puts_before_a_bug_is_taken_off() -> None:
    assert bug_message("Flow run encountered an exception: KeyError: 'x'") == "KeyError: 'x'"
    assert bug_message("Validation failed") == "Validation failed"


def test_a_cancelled_stage_stops_who_made_it_and_is_made_again_by_who_was_attached(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = [Running(), Cancelled(message="by hand")]
    server = Server(cancelled)
    with served_by(server, monkeypatch) as dispatcher, pytest.raises(MemberError, match="was cancelled: by hand"):
        dispatcher.compute(store, REQUEST, Heard())
    server = Server([Running(), Completed()])
    server.add(list(cancelled))
    server.on_end = lambda: None if store.lookup(SPEC.stage, SPEC.key).ref else publish(store)
    with served_by(server, monkeypatch) as dispatcher:
        dispatcher.compute(store, REQUEST, Heard())
    assert [one["idempotency_key"] for one in server.made] == [f"{SPEC.key}:1"]


def test_a_study_that_stops_cancels_what_it_made_and_leaves_what_it_found(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server([Running()])
    with served_by(server, monkeypatch, stopping=True) as dispatcher, pytest.raises(KeyboardInterrupt):
        dispatcher.compute(store, REQUEST, Heard())
    assert server.runs[0].state is not None
    assert server.runs[0].state.is_cancelled()
    server = Server()
    server.add([Running()])
    with served_by(server, monkeypatch, stopping=True) as dispatcher, pytest.raises(KeyboardInterrupt):
        dispatcher.compute(store, REQUEST, Heard())
    assert server.runs[0].state is not None
    assert server.runs[0].state.is_running()


class Contested(Server):
    """Somebody else asks for the stage right after every look that sees it with nobody."""

    def read_flow_runs(self, **options: Any) -> list[FlowRun]:
        seen = super().read_flow_runs(**options)
        if all(run.state is not None and run.state.is_final() for run in seen):
            key = f"{SPEC.key}:{len(seen)}"
            self.create_flow_run_from_deployment(uuid4(), name="theirs", idempotency_key=key, labels={ASKED_BY: "them"})
        return seen


def test_of_two_that_ask_at_once_one_made_the_flow_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed = [Running(), Crashed(message="status -9")]
    server, heard = Contested(crashed, crashed, [Running(), Completed()]), Heard()
    publish(store)
    with served_by(server, monkeypatch) as dispatcher:
        dispatcher.compute(store, REQUEST, heard)
    assert [one["idempotency_key"].rpartition(":")[2] for one in server.made] == ["0", "1", "2"]
    assert {one["name"] for one in server.made} == {"theirs"}, "both have the one flow run, also after a crash"
    assert sum("is already with pool" in line for line in heard.lines) == 3


def test_a_server_that_is_away_for_a_moment_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([Running(), Completed()])
    server.outages = 3
    publish(store)
    with served_by(server, monkeypatch) as dispatcher:
        assert dispatcher.compute(store, REQUEST, Heard()).ref.key == SPEC.key
    assert server.outages == 0


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        ([], "no worker polls pool h100: start one with `alignflow worker --gpu 0`"),
        ([WorkerStatus.OFFLINE], "no worker polls pool h100"),
        ([WorkerStatus.ONLINE, WorkerStatus.ONLINE], "waits for a free worker of pool h100 (2 online)"),
    ],
)
def test_why_a_stage_waits_is_said_once_a_minute(
    workers: list[WorkerStatus], words: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, heard = Server([Scheduled()] * 20 + [Completed()]), Heard()
    server.workers = [type("Worker", (), {"status": status})() for status in workers]
    publish(store)
    with served_by(server, monkeypatch) as dispatcher:
        dispatcher.compute(store, REQUEST, heard)
    assert [words in line for line in heard.lines] == [False, True]


def test_a_stage_without_end_is_given_up_and_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([Running()])
    with served_by(server, monkeypatch, deadline=1e-6) as dispatcher, pytest.raises(RemoteStageError, match="_HOURS"):
        dispatcher.compute(store, REQUEST, Heard())
    assert server.runs[0].state is not None
    assert server.runs[0].state.is_running()


def test_one_that_is_given_up_at_its_first_look_still_says_why_it_waited(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, heard = Server([Scheduled()]), Heard()
    look = server.read_flow_run

    def late(run_id: UUID) -> FlowRun:
        time.sleep(0.05)
        return look(run_id)

    monkeypatch.setattr(server, "read_flow_run", late)
    with served_by(server, monkeypatch, deadline=1e-6) as dispatcher, pytest.raises(RemoteStageError, match="_HOURS"):
        dispatcher.compute(store, REQUEST, heard)
    assert "no worker polls pool h100" in heard.lines[-1]


def test_a_flow_run_that_was_deleted_meanwhile_is_told_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([Running()])
    server.forgets = True
    with served_by(server, monkeypatch) as dispatcher, pytest.raises(RemoteStageError, match="was deleted"):
        dispatcher.compute(store, REQUEST, Heard())


def test_an_artifact_in_another_store_is_told_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "STORE_SECONDS", 0.0)
    server = Server([Running(), Completed()])
    with served_by(server, monkeypatch) as dispatcher, pytest.raises(RemoteStageError, match="same ALIGNFLOW_STORE"):
        dispatcher.compute(store, REQUEST, Heard())


def test_a_server_that_was_not_set_up_names_the_command(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.pools = set()
    with served_by(server, monkeypatch) as dispatcher, pytest.raises(RemoteStageError, match="run `alignflow setup`"):
        dispatcher.compute(store, REQUEST, Heard())


def test_which_stages_go_where() -> None:
    assert [pool_of(stage, {}) for stage in ("prepare", "filter", "grade", "select", "analyze", "report")] == [""] * 6
    assert {pool_of(stage, {}) for stage in pools.GPU_STAGES} == {GPU_POOL}
    assert pool_of("grpo", {"processes": 4}) == MULTI_POOL
    assert pool_of("grade", {"processes": 4}) == ""


def test_without_a_server_the_remedy_is_named() -> None:
    with pytest.raises(ValueError, match="set PREFECT_API_URL"):
        Dispatcher()


@pytest.mark.parametrize("name", ["ALIGNFLOW_POLL_SECONDS", "ALIGNFLOW_STAGE_HOURS", "ALIGNFLOW_STAGE_ATTEMPTS"])
def test_patience_is_a_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    assert 2 in vars(Patience.read()).values()
    monkeypatch.setenv(name, "-1")
    with pytest.raises(ValueError, match=f"{name}='-1'"):
        Patience.read()


def test_a_host_with_other_code_refuses_and_names_the_definition() -> None:
    require_same_code(REQUEST)
    code = {**SPEC.components.code, "alignment_core.stages.import_model.run": "0123456789abcdef"}
    components = SPEC.components.model_copy(update={"code": code})
    other = SPEC.model_copy(update={"components": components, "key": components.key()})
    with pytest.raises(HostError, match="has other code") as caught:
        require_same_code(REQUEST.model_copy(update={"spec": other, "commit": "abc123"}))
    assert "alignment_core.stages.import_model.run" in str(caught.value)
    assert "asks (abc123)" in str(caught.value)
    assert "Check out the same commit" in str(caught.value)


def test_a_host_with_other_libraries_refuses_and_names_them() -> None:
    components = SPEC.components.model_copy(update={"versions": {**SPEC.components.versions, "transformers": "4.0.0"}})
    other = SPEC.model_copy(update={"components": components, "key": components.key()})
    with pytest.raises(HostError, match=r"transformers 4\.0\.0"):
        require_same_code(REQUEST.model_copy(update={"spec": other}))


def test_a_stage_whose_worker_ended_before_it_began_is_asked_for_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Pending(name="Submitting")
    taken.timestamp -= timedelta(seconds=dispatch.STUCK_SECONDS + 1)
    server, heard = Server([taken], [Scheduled(), Completed()]), Heard()
    server.on_end = lambda: store.lookup(SPEC.stage, SPEC.key).ref or publish(store) if len(server.made) == 2 else None
    with served_by(server, monkeypatch) as dispatcher:
        outcome = dispatcher.compute(store, REQUEST, heard)
    assert outcome.ref.key == SPEC.key
    assert [line for line in heard.lines if "its worker has gone" in line and "attempt 2 of 3" in line]


def test_what_was_taken_just_now_is_left_alone() -> None:
    run = FlowRun(id=uuid4(), flow_id=uuid4(), name="x", state=Pending())
    assert not dispatch.is_stuck(run)
    assert not dispatch.is_stuck(run.model_copy(update={"state": Running()}))
