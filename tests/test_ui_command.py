"""What `alignflow ui` starts, and with which protection; the servers themselves are in test_secured_servers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.local_servers import free_port
from flows import servers
from flows.servers import serve_uis

PASSWORD = "twelve-or-more"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str], str]]:
    """Command, variables and login settings of each server that would have been started; each ends at once, well."""
    seen: list[tuple[list[str], dict[str, str], str]] = []

    def start(command: list[str], variables: dict[str, str], _log: Any) -> Any:
        settings = variables.get("MLFLOW_AUTH_CONFIG_PATH")
        seen.append((command, variables, Path(settings).read_text() if settings else ""))
        return SimpleNamespace(
            poll=lambda: 0, returncode=0, terminate=lambda: None, wait=lambda timeout=0: 0, kill=lambda: None
        )

    monkeypatch.setattr(servers, "_start", start)
    monkeypatch.setattr(servers.signal, "signal", lambda *_: None)
    return seen


def test_no_port_is_given_twice() -> None:
    assert len({free_port() for _ in range(500)}) == 500


def test_both_bind_loopback_and_the_database_is_not_on_the_command_line(
    started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:secret-pw@db/mlflow")
    assert serve_uis(tmp_path, free_port(), free_port()) == 0
    for command, _, _ in started:
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert "secret-pw" not in " ".join(command)
    assert started[1][1] == {"MLFLOW_BACKEND_STORE_URI": "postgresql://ann:secret-pw@db/mlflow"}
    assert started[0][1] == {}
    assert "secret-pw" not in capsys.readouterr().out


def test_credentials_in_the_environment_protect_both(
    started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ann:pass-phrase")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    serve_uis(tmp_path, free_port(), free_port())
    (_, prefect, _), (command, mlflow, settings) = started
    assert prefect["PREFECT_SERVER_API_AUTH_STRING"] == "ann:pass-phrase"
    assert command[-2:] == ["--app-name", "basic-auth"]
    assert mlflow["MLFLOW_AUTH_ADMIN_PASSWORD"] == PASSWORD
    assert "admin_username = ann\n" in settings
    assert PASSWORD not in settings + " ".join(command)
    assert not Path(mlflow["MLFLOW_AUTH_CONFIG_PATH"]).exists()  # it is gone with the servers


def test_a_tracking_server_elsewhere_is_only_pointed_to(
    started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret-pw@head:5000")
    serve_uis(tmp_path, free_port(), free_port())
    assert len(started) == 1
    assert "MLflow   http://***@head:5000 (MLFLOW_TRACKING_URI)" in capsys.readouterr().out


@pytest.mark.usefixtures("started")
def test_what_mlflow_would_choke_on_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "short")
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD is too short: MLflow takes 12"):
        serve_uis(tmp_path, free_port(), free_port())
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setattr(servers, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"pip install 'mlflow\[auth\]', or unset them"):
        serve_uis(tmp_path, free_port(), free_port())
