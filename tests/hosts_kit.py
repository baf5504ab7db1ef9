"""A Prefect server of its own, workers that stand for hosts, and studies that ask them: for tests of routing."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError

from waiting import matching

from benchmarks.local_servers import free_port

ROOT = Path(__file__).parents[1]
ALIGNFLOW = [sys.executable, "-c", "from flows.cli import main; main()"]
PREFECT = [sys.executable, "-m", "prefect"]
T = TypeVar("T")


def post(environment: dict[str, str], path: str, body: dict[str, Any]) -> Any:
    """A query of the API of the Prefect server that an environment names.

    Asked again for a minute: a server that is busy with its database answers 503, as its own client knows.
    """
    request = urllib.request.Request(
        f"{environment['PREFECT_API_URL']}/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read())
        except OSError as error:
            if time.monotonic() > deadline or (isinstance(error, HTTPError) and error.code < 500):
                raise
        time.sleep(0.5)


class Hosts:
    """One server, and whatever is started beside it; `close` ends all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "root"
        self.port = free_port()
        foreign = ("PREFECT_", "MLFLOW_", "ALIGNFLOW_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.environment = {
            **clean,
            "HOME": str(folder),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "true",
            "COLUMNS": "200",
            "PYTHONUNBUFFERED": "1",
            "ALIGNFLOW_POLL_SECONDS": "0.5",
            "ALIGNFLOW_CHECKPOINT_SECONDS": "0.3",
        }
        self.hosts: dict[str, subprocess.Popen[Any]] = {}
        self._processes: list[subprocess.Popen[Any]] = []

    def start_server(self) -> None:
        """Until it answers."""
        command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.start(command, "server.log", cwd=self.folder)
        self.until(self.is_healthy)

    def is_healthy(self) -> bool:
        """Whether the server answers."""
        try:
            with urllib.request.urlopen(f"{self.environment['PREFECT_API_URL']}/health", timeout=2):
                return True
        except OSError:
            return False

    def start(self, command: list[str], log: str, cwd: Path = ROOT, **extra: str) -> subprocess.Popen[Any]:
        """A process in a session of its own, whose output goes to a file of the folder."""
        with (self.folder / log).open("a") as file:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**self.environment, **extra},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def start_host(self, name: str, *options: str) -> subprocess.Popen[Any]:
        """`alignflow worker` as the host of that name would run it; also under `hosts`."""
        command = [*ALIGNFLOW, "worker", *options, "--name", name, "--root", str(self.root)]
        self.hosts[name] = self.start(command, f"{name}.log")
        return self.hosts[name]

    def study(self, log: str, *arguments: str, python: tuple[str, ...] = ()) -> subprocess.Popen[Any]:
        """An `alignflow` command that asks the workers, under way."""
        return self.start(self.study_command(*arguments, python=python), log)

    def study_command(self, *arguments: str, python: tuple[str, ...] = ()) -> list[str]:
        """An `alignflow` command that asks the workers; `python`: options of the interpreter."""
        command = [ALIGNFLOW[0], *python, *ALIGNFLOW[1:], *arguments]
        return [*command, "--root", str(self.root), "--executor", "work-pool"]

    def done(self, *command: str, code: int = 0, cwd: Path = ROOT) -> str:
        """Output of a command that ends by itself."""
        ended = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
            stdin=subprocess.DEVNULL,
        )
        assert ended.returncode == code, f"{command}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout + ended.stderr

    def log(self, name: str) -> str:
        """What a process has written so far."""
        return (self.folder / name).read_text(encoding="utf-8", errors="replace")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """A query of the server's API."""
        return post(self.environment, path, body)

    def flow_runs(self, *tags: str) -> list[dict[str, Any]]:
        """Flow runs with these tags, in the order in which they were made."""
        found = self.post("flow_runs/filter", {"flow_runs": {"tags": {"all_": list(tags)}} if tags else {}})
        return sorted(found, key=lambda run: run["created"])

    def running(self, *tags: str) -> dict[str, Any] | None:
        """The one that is under way."""
        return next((run for run in self.flow_runs(*tags) if run["state_name"] == "Running"), None)

    def until(self, asked: Callable[[], T], seconds: float = 240) -> T:
        """What `asked` answers once that is anything."""
        deadline = time.monotonic() + seconds
        while not (answer := asked()):
            assert time.monotonic() < deadline, "\n".join(
                f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in self.folder.glob("*.log")
            )
            time.sleep(0.2)
        return answer

    def processes(self) -> list[str]:
        """Command lines of what lives on this server, whoever started it."""
        mark, found = f"PREFECT_API_URL={self.environment['PREFECT_API_URL']}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if mark in path.read_bytes():
                    found.append(path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def checkpoint(self, stage: str) -> int:
        """Step of the newest checkpoint of a stage under way; 0 without one."""
        work = self.root / "data" / "store" / ".work"
        markers = matching(work, f"{stage}-*/checkpoints/[0-9]*/complete.json")
        return max((int(marker.parent.name) for marker in markers), default=0)

    def stop(self, process: subprocess.Popen[Any], number: signal.Signals, seconds: float = 90) -> int:
        """Signal a process and see it end; its exit code."""
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(timeout=seconds)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def close(self) -> None:
        """End everything, the newest first; workers before the server. One that does not end keeps none from it."""
        with ExitStack() as stack:
            for process in self._processes:
                stack.callback(self.stop, process, signal.SIGTERM)
