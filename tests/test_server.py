"""The smoke study through a real Prefect server and one process worker, from prefect.yaml."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hosts_kit import post

from benchmarks.local_servers import free_port, wait_until_healthy

ROOT = Path(__file__).parents[1]
PREFECT = [sys.executable, "-m", "prefect"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of clients of a fresh server with a pool `cpu` and one worker."""
    home = tmp_path_factory.mktemp("server")
    port = free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environment = {
        **clean,
        "HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PYTHONPATH": str(ROOT),  # what an installed alignflow needs not: the worker finds its checkout by import
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = (home / "server.log").open("w")
    start = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with ExitStack() as ending:
        ending.callback(log.close)
        server = subprocess.Popen(start, env=environment, stdout=log, stderr=log)
        ending.callback(stop, server, signal.SIGTERM)
        wait_until_healthy(environment["PREFECT_API_URL"])
        prefect(environment, "work-pool", "create", "cpu", "--type", "process")
        prefect(environment, "--no-prompt", "deploy", "--name", "study/smoke")
        worker = [*PREFECT, "worker", "start", "--pool", "cpu"]
        process = subprocess.Popen(worker, env=environment, cwd=ROOT, stdout=log, stderr=log)
        ending.callback(stop, process, signal.SIGTERM)
        yield environment


def stop(process: subprocess.Popen[str] | subprocess.Popen[bytes], number: signal.Signals, seconds: float = 60) -> None:
    """Signal a process and see it end; kill it before failing, so that nothing is left behind."""
    process.send_signal(number)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def test_a_taken_port_is_named_with_the_remedy(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-c", "from flows.cli import main; main()", "ui", "--mlflow-port", port]
        command += ["--prefect-port", str(free_port()), "--root", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"port {port} cannot be used" in done.stderr
    assert "or choose another with --mlflow-port" in done.stderr
    assert "http" not in done.stdout


def prefect(environment: dict[str, str], *arguments: str) -> str:
    """Run the prefect command; its output."""
    done = subprocess.run(
        [*PREFECT, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_deployment(environment: dict[str, str], root: Path) -> set[object]:
    """Run study/smoke to its end; the states its task runs ended in."""
    prefect(environment, "deployment", "run", "study/smoke", "--param", f'root="{root}"', "--watch")
    newest = post(environment, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]
    assert newest["state_name"] == "Completed"
    tasks = post(environment, "task_runs/filter", {"flow_runs": {"id": {"any_": [newest["id"]]}}, "limit": 200})
    assert len(tasks) >= 20
    return {task["state_name"] for task in tasks}


def test_a_deployment_runs_the_study_and_a_second_run_is_all_cached(server: dict[str, str], tmp_path: Path) -> None:
    assert run_deployment(server, tmp_path) == {"Completed"}
    assert run_deployment(server, tmp_path) == {"Cached"}


def test_ui_serves_prefect_and_mlflow_on_loopback_until_interrupted(tmp_path: Path) -> None:
    ports = (free_port(), free_port())
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    command = [sys.executable, "-c", "from flows.cli import main; main()", "ui", "--root", str(tmp_path)]
    options = ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    environment = {**clean, "HOME": str(tmp_path)}
    ui = subprocess.Popen([*command, *options], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert ui.stdout is not None
        urls = [ui.stdout.readline().split()[-1] for _ in ports]
        assert urls == [f"http://127.0.0.1:{port}" for port in ports]
        wait_until_healthy(f"{urls[0]}/api")
        wait_until_healthy(urls[1])
        assert "Prefect" in page(urls[0])
        assert "MLflow" in page(urls[1])
    finally:
        stop(ui, signal.SIGINT)
    for url in urls:
        with pytest.raises(OSError, match="refused"):
            page(url)


def page(url: str) -> str:
    """The text a browser would get."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())
