"""Real servers for slow tests: MLflow's and Prefect's, each in a process of its own on loopback."""

import base64
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from benchmarks.local_servers import free_port

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]
TINIEST = {
    "model.scratch.hidden_size": 32,
    "model.scratch.intermediate_size": 64,
    "model.scratch.documents": 200,
    "data.arithmetic.test": 24,
    "sampling.max_tokens": 12,
    "plain_prompt": "null",
}
SMALL = ["eval", "smoke", *(word for name, value in TINIEST.items() for word in ("--set", f"{name}={value}"))]
"""The shortest command with a model, problems and an evaluation; five stages or fewer."""


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """This environment without what would configure Prefect, MLflow or us, with a home of its own."""
    ours = ("PREFECT_", "MLFLOW_", "ALIGNFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    fixed = {"HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "DO_NOT_TRACK": "true"}
    return {**kept, **fixed, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "MLFLOW_DISABLE_TELEMETRY": "true", **more}


class Server:
    """A server process that can be killed and started again on the same port; several start side by side."""

    def __init__(self, command: list[str], environment: dict[str, str], health: str, log: Path) -> None:
        self._command, self._environment, self._health, self._log = command, environment, health, log
        self.start()

    def start(self) -> None:
        """Start it; it does not answer at once."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def wait(self) -> "Server":
        """Wait until it answers."""
        deadline = time.monotonic() + 150
        while status(self._health) is None:
            code = self._process.poll()
            assert code is None, f"it ended with exit code {code}: {self._log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"nobody answers at {self._health}"
            time.sleep(0.2)
        return self

    @property
    def folder(self) -> Path:
        """Where it keeps what it writes."""
        return self._log.parent

    def kill(self) -> None:
        """SIGKILL, to the server and to the workers it started; nothing to do if it has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid


def mlflow_server(folder: Path, *options: str, backend: str = "", **variables: str) -> tuple[Server, str]:
    """A tracking server that keeps the files, too; and its URL."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "files"), *options]
    environment = clean_environment(
        folder,
        MLFLOW_BACKEND_STORE_URI=backend or f"sqlite:///{folder / 'mlflow.db'}",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        **variables,
    )
    url = f"http://127.0.0.1:{port}"
    return Server(command, environment, f"{url}/health", folder / "mlflow.log"), url


def prefect_server(folder: Path, **variables: str) -> tuple[Server, str]:
    """A Prefect server; and the URL of its API."""
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/api"
    return Server(command, clean_environment(folder, **variables), f"{url}/health", folder / "prefect.log"), url


def wait_until_healthy(url: str, seconds: float = 120.0) -> None:
    """Poll until somebody answers."""
    deadline = time.monotonic() + seconds
    while status(url) is None:
        assert time.monotonic() < deadline, f"nobody answers at {url}"
        time.sleep(0.2)


def status(url: str, credentials: str = "", body: bytes | None = None) -> int | None:
    """HTTP status of a call, credentials as user:password; None if nobody answers."""
    headers = {"Content-Type": "application/json"}
    if credentials:
        headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def listening(pid: int) -> set[str]:
    """Addresses that a process and its children listen on."""
    import psutil

    process = psutil.Process(pid)
    found = set()
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, FileNotFoundError):  # a child that has ended meanwhile
            found |= {entry.laddr.ip for entry in one.net_connections("tcp") if entry.status == psutil.CONN_LISTEN}
    return found
