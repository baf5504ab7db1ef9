"""A hub that does not answer: said within seconds, and not needed for what the cache holds."""

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from huggingface_hub import constants

from alignment_core import hub
from alignment_core.models import load_tokenizer
from alignment_core.problem_sources import read_rows


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Put another address in the place of the hub, asked anew."""

    def place(url: str) -> None:
        hub.hub_outage.cache_clear()
        monkeypatch.setattr(constants, "ENDPOINT", url)

    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(hub, "is_offline_mode", lambda: False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield place
    hub.hub_outage.cache_clear()


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never answers, as behind some firewalls."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: load_tokenizer("owner/name"), "set model.source (or --model, or distillation.teacher) to a local"),
        (lambda: read_rows("owner/name", "train"), "set data.train, data.test (and data.traces) to local .jsonl files"),
    ],
)
def test_an_unreachable_hub_is_said_within_seconds_with_what_to_set(
    endpoint: Callable[[str], None], silent: str, ask: Callable[[], object], words: str
) -> None:
    endpoint(silent)
    pytest.importorskip("datasets")  # whose import takes seconds
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"the hub at {silent} cannot be reached") as caught:
        ask()
    assert time.monotonic() - began < 30  # the hub's own client asks for minutes
    assert words in str(caught.value)


def test_a_model_in_the_cache_does_not_need_the_hub(
    endpoint: Callable[[str], None], silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint(silent)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_names, **_options: "cache/config.json")
    assert hub.loading_options("owner/name", "v1") == {"revision": "v1", "local_files_only": True}


def test_a_hub_that_answers_anything_is_asked(endpoint: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PROBE_SECONDS", 30.0)

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_arguments: object) -> None:
            """Quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        endpoint(f"http://127.0.0.1:{server.server_port}")
        assert hub.loading_options("owner/name", None) == {"revision": None}
