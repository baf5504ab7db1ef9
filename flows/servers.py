"""The two web UIs, on loopback."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import IO

from alignment_core.redaction import redact
from tasks.tracking import tracking_uri

LOOPBACK = "127.0.0.1"
ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Nothing here uses MLflow's background jobs, whose seven processes outlive the server by a minute."""
SHORTEST_PASSWORD = 12
"""MLflow's own limit."""


def serve_uis(root: Path, prefect_port: int, mlflow_port: int) -> int:
    """Start both servers, print their URLs, wait; when one ends or Ctrl-C comes, end the other.

    A tracking server that MLFLOW_TRACKING_URI names is only pointed to. Credentials in the environment protect the
    servers started here: PREFECT_API_AUTH_STRING; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    Raises ValueError if a port is taken, or if what asks for credentials is not installed.
    """
    elsewhere = tracking_uri(root).startswith(("http://", "https://"))
    _require_free(prefect_port, "--prefect-port")
    if not elsewhere:
        _require_free(mlflow_port, "--mlflow-port")
    (root / "mlruns").mkdir(parents=True, exist_ok=True)
    log_path = root / "mlruns" / "ui.log"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)  # also where a shell started us with SIGINT ignored
    servers: list[subprocess.Popen[bytes]] = []
    with log_path.open("w") as log, tempfile.TemporaryDirectory(prefix="alignflow-ui-") as private:
        try:
            servers.append(_start(_prefect_command(prefect_port), prefect_environment(), log))
            print(f"Prefect  http://{LOOPBACK}:{prefect_port}", flush=True)
            if elsewhere:
                print(f"MLflow   {redact(tracking_uri(root))} (MLFLOW_TRACKING_URI)", flush=True)
            else:
                protection, variables = _mlflow_protection(Path(private))
                command = [*_mlflow_command(root, mlflow_port), *protection]
                # In the environment, not on the command line, which everybody on the host can read.
                variables = {**variables, "MLFLOW_BACKEND_STORE_URI": tracking_uri(root)}
                servers.append(_start(command, variables, log))
                print(f"MLflow   http://{LOOPBACK}:{mlflow_port}", flush=True)
            code = _wait(servers)
            print(f"one of them ended with exit code {code}: see {log_path}", flush=True)
            return code
        except KeyboardInterrupt:
            return 0
        finally:
            _stop(servers)


def prefect_environment() -> dict[str, str]:
    """What protects a Prefect server that is started here: it asks for what our own client would give."""
    known = os.environ.get("PREFECT_SERVER_API_AUTH_STRING") or os.environ.get("PREFECT_API_AUTH_STRING")
    return {"PREFECT_SERVER_API_AUTH_STRING": known, "PREFECT_API_AUTH_STRING": known} if known else {}


def _prefect_command(port: int) -> list[str]:
    return [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)]


def _mlflow_command(root: Path, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port)),
        *("--default-artifact-root", (root / "mlruns" / "artifacts").as_uri()),
    ]


def _mlflow_protection(private: Path) -> tuple[list[str], dict[str, str]]:
    """Options and environment of an MLflow server that lets in only who has our credentials, if there are any.

    Its table of users lives in `private` for as long as it runs: the environment is what counts, each time.
    """
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if not (user and password):
        return [], {}
    if find_spec("flask_wtf") is None:
        raise ValueError(
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are set, and MLflow's server needs Flask-WTF to ask "
            "for them: pip install 'mlflow[auth]', or unset them"
        )
    if len(password) < SHORTEST_PASSWORD:
        raise ValueError(f"MLFLOW_TRACKING_PASSWORD is too short: MLflow takes {SHORTEST_PASSWORD} characters or more")
    settings = private / "basic_auth.ini"
    lines = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": f"sqlite:///{private / 'users.db'}",
        "admin_username": user,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    settings.write_text("[mlflow]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items()))
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }
    return ["--app-name", "basic-auth"], variables


def _start(command: list[str], variables: dict[str, str], log: IO[str]) -> "subprocess.Popen[bytes]":
    """In a session of its own a server does not see the terminal's Ctrl-C: we end it, in order."""
    environment = {**os.environ, **ENVIRONMENT, **variables}
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def _wait(servers: list["subprocess.Popen[bytes]"]) -> int:
    """Until one of them ends; its exit code."""
    while all(server.poll() is None for server in servers):
        with suppress(subprocess.TimeoutExpired):
            servers[0].wait(timeout=1)
    return next(server.returncode for server in servers if server.poll() is not None) or 0


def _stop(servers: list["subprocess.Popen[bytes]"]) -> None:
    for server in servers:
        server.terminate()
    for server in servers:
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


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
