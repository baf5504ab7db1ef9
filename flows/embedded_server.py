"""Prefect's embedded server, in a session of its own and tied to the life of the command that started it.

A terminal sends Ctrl-C, and a process manager SIGTERM, to every process of a group. A server that dies of it leaves
Prefect's client retrying for a minute, so it lives outside the group. And a command that is killed cannot stop its
server: the server reads a pipe whose other end only the command holds, and ends when that closes.
(Run as a program, this module is the server's process.)
"""

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import httpx
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

ENVIRONMENT = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""What Prefect sets for its embedded server, too."""


class EmbeddedServer(SubprocessASGIServer):
    """The server Prefect would start itself; it finds this one started, and stops it at exit."""

    def _run_uvicorn_command(self) -> "subprocess.Popen[Any]":
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        return subprocess.Popen(
            [sys.executable, "-P", __file__, str(self.port)],  # -P: the modules beside this file are not top-level ones
            env={**os.environ, **ENVIRONMENT, **settings, **protection()},
            stdin=subprocess.PIPE,
            start_new_session=True,
        )


def protection() -> dict[str, str]:
    """What the server asks of its callers, and what our own calls give: one and the same, where either is set."""
    settings = get_current_settings()
    secret = settings.server.api.auth_string or settings.api.auth_string
    known = secret.get_secret_value() if secret is not None else ""
    return {"PREFECT_SERVER_API_AUTH_STRING": known, "PREFECT_API_AUTH_STRING": known} if known else {}


def start_embedded_server() -> None:
    """Start the server that Prefect would start itself at its first call; nothing to do where an API is configured.

    Raises what starting it raises.
    """
    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return
    try:
        EmbeddedServer().start()
    except httpx.TimeoutException:  # whatever the limit for its start, Prefect gives the first answer 5 s, once
        EmbeddedServer().stop()
        EmbeddedServer().start()


def serve(port: int) -> None:
    """Serve Prefect's API on loopback until SIGTERM, or until whoever holds the other end of stdin is gone."""
    import uvicorn

    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
    )


def _end_with_the_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
