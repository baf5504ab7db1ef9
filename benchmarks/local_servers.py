"""Servers on this machine, for benchmarks and tests that start one: a free port, and the wait until it answers."""

import socket
import time
import urllib.request

_given: set[int] = set()


def free_port() -> int:
    """A port nobody listens on right now, another at each call: whom it was given to may not listen on it yet."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


def wait_until_healthy(url: str, seconds: float = 90.0) -> None:
    """Poll the server's health endpoint, `url`/health; RuntimeError if it does not answer in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"no server answers at {url} after {seconds} s")
