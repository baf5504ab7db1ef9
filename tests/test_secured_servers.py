"""Both servers with credentials, for real: who has none is refused, a study with some works and writes none down."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from real_servers import (
    COMMAND,
    ROOT,
    SMALL,
    Server,
    clean_environment,
    listening,
    mlflow_server,
    prefect_server,
    status,
    wait_until_healthy,
)

from alignment_core.events import EVENTS, Event
from alignment_core.manifest import Components
from alignment_core.records import ArtifactRef
from alignment_core.stage import StageSpec
from benchmarks.local_servers import free_port
from tasks.rebuild import rebuild
from tasks.tracker import Tracker, TrackingError
from tasks.tracking import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PASSWORD = "Str0ng-mlflow-pa55word"
PREFECT_AUTH = "operator:Str0ng-prefect-pa55phrase"
SECRETS = {
    "HF_TOKEN": "hf_SECRETsecretSECRETsecret0001",
    "AWS_ACCESS_KEY_ID": "AKIASECRETSECRET0002",
    "AWS_SECRET_ACCESS_KEY": "wJalrSECRETkey/Rxut+Fn0003",
    "AWS_SESSION_TOKEN": "FwoGSECRETsession0004",
    "MLFLOW_TRACKING_USERNAME": "operator-of-mlflow",
    "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    "PREFECT_API_AUTH_STRING": PREFECT_AUTH,
}
EXPERIMENTS = "api/2.0/mlflow/experiments/search"


Both = tuple[Server, str, Server, str]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """A tracking server with basic-auth that keeps the files and a Prefect server with an auth string; their URLs.

    As docs/operations.md starts them.
    """
    folder = tmp_path_factory.mktemp("mlflow")
    settings = folder / "basic_auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\nadmin_username = operator-of-mlflow\n"
        f"database_uri = sqlite:///{folder / 'users.db'}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    mlflow, url = mlflow_server(
        folder,
        *("--app-name", "basic-auth"),
        MLFLOW_AUTH_CONFIG_PATH=str(settings),
        MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD,
        MLFLOW_FLASK_SERVER_SECRET_KEY="a key of the test",
    )
    prefect, api = prefect_server(tmp_path_factory.mktemp("prefect"), PREFECT_SERVER_API_AUTH_STRING=PREFECT_AUTH)
    try:
        yield mlflow.wait(), url, prefect.wait(), api
    finally:
        mlflow.kill()
        prefect.kill()


@pytest.fixture
def mlflow(both: Both) -> tuple[Server, str]:
    return both[:2]


@pytest.fixture
def prefect(both: Both) -> tuple[Server, str]:
    return both[2:]


def test_a_call_without_credentials_is_refused(mlflow: tuple[Server, str], prefect: tuple[Server, str]) -> None:
    body = json.dumps({"max_results": 1}).encode()
    for url, credentials in [
        (f"{mlflow[1]}/{EXPERIMENTS}", f"operator-of-mlflow:{PASSWORD}"),
        (f"{prefect[1]}/flow_runs/filter", PREFECT_AUTH),
    ]:
        payload = body if "mlflow" in url else b"{}"
        assert status(url, body=payload) == 401
        assert status(url, "operator-of-mlflow:wrong", payload) == 401
        assert status(url, credentials, payload) == 200
    assert status(f"{mlflow[1]}/api/2.0/mlflow-artifacts/artifacts") == 401
    assert listening(mlflow[0].pid) == listening(prefect[0].pid) == {"127.0.0.1"}


def test_a_study_uses_credentials_and_writes_none_down(
    mlflow: tuple[Server, str], prefect: tuple[Server, str], tmp_path: Path
) -> None:
    root, address = tmp_path / "root", mlflow[1].removeprefix("http://")
    # The password in the URL as well, as people write it: MLflow's client takes it from there, too.
    uri = f"http://operator-of-mlflow:{PASSWORD}@{address}"
    environment = clean_environment(tmp_path, **SECRETS, MLFLOW_TRACKING_URI=uri, PREFECT_API_URL=prefect[1])
    command = [*COMMAND, *SMALL, "--root", str(root)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    for words in (["doctor"], ["artifacts", "ls"]):
        command = [*COMMAND, *words, "--root", str(root)]
        shown += subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120).stdout
    assert f"http://***@{address}" in shown  # the doctor says where, and no more
    runs = runs_of(uri, "smoke", SECRETS)
    assert {"FINISHED"} == {run.info.status for run in runs}
    servers = [mlflow[0].folder, prefect[0].folder]
    written = shown.encode() + written_in(tmp_path, *servers)
    written += prefect_content(servers[1])
    found = [
        name for name, value in SECRETS.items() if name != "MLFLOW_TRACKING_USERNAME" and value.encode() in written
    ]
    assert found == []
    assert b"evaluation-zero-shot-grade-test" in written  # Prefect's artifacts were looked through


def written_in(*folders: Path) -> bytes:
    """What all files hold, while servers write there: their journals come and go."""
    found = []
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for path in (Path(parent, name) for name in names):
                with suppress(FileNotFoundError):
                    if path.is_file():
                        found.append(path.read_bytes())
    return b"".join(found)


def runs_of(uri: str, study: str, environment: dict[str, str]) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            patch.setenv(name, environment[name])
        client = connect(uri)
        experiment = client.get_experiment_by_name(study)
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id]))


def prefect_content(folder: Path) -> bytes:
    """All text of the server's database, its write-ahead log included."""
    with sqlite3.connect(folder / "prefect" / "prefect.db") as connection:
        return "\n".join(connection.iterdump()).encode()


def make_spec(key: str) -> StageSpec:
    components = Components(stage="sft", config={}, inputs={}, code={}, versions={})
    return StageSpec(stage="sft", label=key, config={"lr": 1}, inputs={}, components=components, key=key)


@pytest.fixture
def with_credentials(mlflow: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow[1])
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, SECRETS[name])
    return mlflow[1]


def test_training_goes_on_while_the_tracking_server_is_dead_and_no_point_is_lost_or_doubled(
    mlflow: tuple[Server, str], with_credentials: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import tracker as tracker_module

    monkeypatch.setattr(tracker_module, "DELAYS", (0.2, 1.0))
    tracker, spec = Tracker(tmp_path, "outage", "run", {"alignflow.run": "r1"}), make_spec("outage")
    tracker.stage_started(spec)
    events, took = [], []
    for step in range(1, 61):
        if step == 20:
            wait_for(lambda: points_of(with_credentials) >= 15)
            mlflow[0].kill()
        if step == 40:
            threading.Timer(1.0, mlflow[0].start).start()  # training does not wait for it
        began = time.monotonic()
        events.append(Event(kind="point", step=step, time=1000.0 + step, metrics={"train/loss": 1 / step}))
        tracker.stage_event(spec, events[-1])
        if step % 5 == 0:
            tracker.stage_event(spec, Event(kind="checkpoint", step=step, time=1000.0 + step))
        took.append(time.monotonic() - began)
        time.sleep(0.02)
    assert sorted(took)[-3] < 0.2  # the machine may stall; what waits for a dead server does so at twenty steps
    artifact = tmp_path / "artifact"
    (artifact / "record").mkdir(parents=True)
    (artifact / "record" / EVENTS).write_text("".join(event.model_dump_json() + "\n" for event in events))
    tracker.stage_finished(spec, ArtifactRef(stage="sft", key="outage", digest="d"), artifact)
    tracker.study_finished("FINISHED", {"final/x": 1.0}, [], {})
    tracker.close()
    client = connect(with_credentials)
    experiment = client.get_experiment_by_name("outage")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {"outage": "FINISHED", "run": "FINISHED"}
    history = client.get_metric_history(runs["outage"].info.run_id, "train/loss")
    assert [(point.step, point.timestamp) for point in history] == [(n, (1000 + n) * 1000) for n in range(1, 61)]
    assert not tracker.is_pending("outage")


def points_of(url: str) -> int:
    """Points that have arrived of the stage under way."""
    client = connect(url)
    experiment = client.get_experiment_by_name("outage")
    runs = client.search_runs([experiment.experiment_id], "tags.`alignflow.kind` = 'sft'") if experiment else []
    return len(client.get_metric_history(runs[0].info.run_id, "train/loss")) if runs else 0


def wait_for(happened: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_wrong_credentials_are_told_without_repeating_them(
    mlflow: tuple[Server, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow[1].replace("http://", "http://operator:guessed-wrong@"))
    tracker = Tracker(tmp_path, "refused", "run", {})
    tracker.stage_started(make_spec("refused"))
    with pytest.raises(TrackingError, match=r"MLflow at http://\*\*\*@127.*could not be written") as caught:
        tracker.close()
    assert "guessed-wrong" not in str(caught.value)
    assert tracker.is_pending("refused")


@pytest.mark.parametrize(
    "words", [["status"], ["setup"], ["worker", "--cpu", "1"], [*SMALL]], ids=lambda words: words[0]
)
def test_a_prefect_server_that_refuses_us_is_told_in_a_paragraph(
    words: list[str], prefect: tuple[Server, str], tmp_path: Path
) -> None:
    guess = {"PREFECT_API_URL": prefect[1], "PREFECT_API_AUTH_STRING": "operator:guessed"}
    environment = clean_environment(tmp_path, ALIGNFLOW_ROOT=str(tmp_path / "root"), **guess)
    done = subprocess.run([*COMMAND, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    told = done.stderr.strip().splitlines()[-1]
    assert told.startswith(f"alignflow: Prefect's server at {prefect[1]} refuses this host (401)"), done.stderr
    assert "PREFECT_API_AUTH_STRING" in told
    assert "Traceback" not in done.stderr
    assert "guessed" not in done.stderr


def test_a_rebuild_over_http_leaves_no_model_twice(with_credentials: str, tmp_path: Path) -> None:
    from test_lineage import compute

    from tasks.workspace import open_workspace

    with open_workspace(str(tmp_path), "lineage", "study") as workspace:
        base = compute(workspace, "pretrain", "base model", {}, [])
        compute(workspace, "sft", "sft", {"model": base}, [])
    client = connect(with_credentials)
    for _ in range(2):
        experiment = client.get_experiment_by_name("lineage")
        assert experiment is not None
        models = client.search_logged_models([experiment.experiment_id])
        assert sorted(one.name for one in models) == ["base model", "sft"]
        (study,) = client.search_runs([experiment.experiment_id], "tags.`alignflow.kind` = 'study'")
        assert [one.path for one in client.list_artifacts(study.info.run_id)] == ["stages.json"]
        rebuild(tmp_path)


def test_ui_asks_for_the_credentials_in_the_environment_and_stays_on_loopback(tmp_path: Path) -> None:
    ports = (free_port(), free_port())
    command = [*COMMAND, "ui", "--root", str(tmp_path), "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    environment = clean_environment(tmp_path, **SECRETS)
    ui = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    prefect_url, mlflow_url = (f"http://127.0.0.1:{port}" for port in ports)
    try:
        wait_until_healthy(f"{prefect_url}/api/health")
        wait_until_healthy(f"{mlflow_url}/health")
        for url, credentials in [
            (f"{prefect_url}/api/flows/filter", PREFECT_AUTH),
            (f"{mlflow_url}/{EXPERIMENTS}", f"operator-of-mlflow:{PASSWORD}"),
        ]:
            body = b"{}" if "flows" in url else b'{"max_results": 1}'
            assert (status(url, body=body), status(url, "operator-of-mlflow:wrong", body)) == (401, 401)
            assert status(url, credentials, body) == 200
        assert listening(ui.pid) == {"127.0.0.1"}
        commands = "".join(map(command_line, family(ui.pid)))
        assert PASSWORD not in commands
    finally:
        ui.send_signal(signal.SIGINT)
        said, _ = ui.communicate(timeout=60)
    written = said + written_in(tmp_path)
    assert PASSWORD.encode() not in written
    assert PREFECT_AUTH.encode() not in written


def family(pid: int) -> list[int]:
    import psutil

    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def command_line(pid: int) -> str:
    """Of a process that may have ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


PROBE = """
import json, os, urllib.error, urllib.request
from flows.embedded_server import start_embedded_server
from prefect.client.orchestration import get_client
from prefect.server.api.server import SubprocessASGIServer
start_embedded_server()
server = SubprocessASGIServer()
with get_client(sync_client=True) as client:
    known = len(client.read_flows())
try:
    urllib.request.urlopen(urllib.request.Request(f"{server.api_url}/flows/filter", data=b"{}"), timeout=10)
    refused = None
except urllib.error.HTTPError as error:
    refused = error.code
print(json.dumps([known, refused, server.server_process.pid]), flush=True)
input()
"""


def test_the_embedded_server_asks_for_them_too(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path, PREFECT_API_AUTH_STRING=PREFECT_AUTH)
    environment |= {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90", "PYTHONPATH": str(ROOT)}
    probe = subprocess.Popen(
        [sys.executable, "-c", PROBE],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert probe.stdout is not None
        known, refused, pid = json.loads(probe.stdout.readline())
        assert (known, refused) == (0, 401)
        assert listening(pid) == {"127.0.0.1"}
        assert PREFECT_AUTH not in Path(f"/proc/{pid}/cmdline").read_text()
    finally:
        probe.communicate("\n", timeout=60)
    assert not os.path.exists(f"/proc/{pid}")
