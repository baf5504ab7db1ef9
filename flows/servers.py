"""The two web UIs, on loopback."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import FrameType

from tasks.tracking import tracking_uri

LOOPBACK = "127.0.0.1"
ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Nothing here uses MLflow's background jobs, whose seven processes outlive the server by a minute."""


def serve_uis(root: Path, prefect_port: int, mlflow_port: int) -> int:
    """Start both servers, print their URLs, wait; when one ends or Ctrl-C comes, end the other.

    Raises ValueError if a port is taken.
    """
    _require_free(prefect_port, "--prefect-port")
    _require_free(mlflow_port, "--mlflow-port")
    (root / "mlruns").mkdir(parents=True, exist_ok=True)
    commands = {
        f"Prefect  http://{LOOPBACK}:{prefect_port}": [
            *(sys.executable, "-m", "prefect", "server", "start"),
            *("--host", LOOPBACK, "--port", str(prefect_port)),
        ],
        f"MLflow   http://{LOOPBACK}:{mlflow_port}": [
            *(sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(mlflow_port)),
            *("--backend-store-uri", tracking_uri(root)),
            *("--default-artifact-root", (root / "mlruns" / "artifacts").as_uri()),
        ],
    }
    servers: list[subprocess.Popen[bytes]] = []
    log_path = root / "mlruns" / "ui.log"
    log = log_path.open("w")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)  # also where a shell started us with SIGINT ignored
    try:
        for url, command in commands.items():
            # In a session of its own a server does not see the terminal's Ctrl-C: we end it, in order.
            servers.append(
                subprocess.Popen(
                    command, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT}, start_new_session=True
                )
            )
            print(url, flush=True)
        while all(server.poll() is None for server in servers):
            try:
                servers[0].wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
        code = next(server.returncode for server in servers if server.poll() is not None) or 0
        print(f"one of them ended with exit code {code}: see {log_path}", flush=True)
        return code
    except KeyboardInterrupt:
        return 0
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        log.close()


def _require_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be used ({error.strerror}): end what listens there, or choose another "
                f"with {option}"
            ) from error


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
