"""Postgres behind both servers, for real: a private cluster, a study, and the same study again, all cached."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from real_servers import COMMAND, ROOT, SMALL, clean_environment, mlflow_server, prefect_server

from benchmarks.local_servers import free_port
from tasks.rebuild import rebuild

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
NOBODY = "nobody"


def find_binaries() -> Path:
    """Folder of initdb and pg_ctl; skips, loudly, where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or list(filter(None, [which("initdb")]))
    if not found:
        pytest.skip("no Postgres here: apt install postgresql, to run this test")
    for package in ("psycopg2", "asyncpg"):
        if find_spec(package) is None:
            pytest.skip(f"no {package} here: pip install 'alignflow[postgres]', to run this test")
    return found[-1].parent


def which(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


@pytest.fixture
def cluster() -> Iterator[tuple[str, Path]]:
    """A private cluster, run by an unprivileged user, with the databases mlflow and prefect; host:port and binaries."""
    binaries, port = find_binaries(), free_port()
    user = NOBODY if os.getuid() == 0 else None  # Postgres refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="alignflow-pg-", dir="/tmp"))  # a socket's path is short

    def run(*command: str) -> None:
        words = {"cwd": folder, "user": user, "check": True, "capture_output": True, "timeout": 120}
        subprocess.run([str(binaries / command[0]), *command[1:]], **words)  # type: ignore[call-overload]

    if user:
        shutil.chown(folder, user)
    secret = folder / "password"
    secret.write_text("pg-pa55word")
    secret.chmod(0o644)
    data = str(folder / "data")
    try:
        run("initdb", "-D", data, "-U", "alignflow", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            for name in ("mlflow", "prefect"):
                environment = {**os.environ, "PGPASSWORD": "pg-pa55word"}
                make = [str(binaries / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "alignflow", name]
                subprocess.run(make, env=environment, check=True, timeout=60)
            yield f"127.0.0.1:{port}", binaries
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


def test_a_study_on_servers_with_postgres(
    cluster: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, binaries = cluster
    account = f"alignflow:pg-pa55word@{address}"
    connection = f"postgresql+asyncpg://{account}/prefect"
    prefect, api = prefect_server(tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=connection)
    try:
        mlflow, url = mlflow_server(tmp_path, backend=f"postgresql+psycopg2://{account}/mlflow")
        try:
            mlflow.wait()
            prefect.wait()
            environment = clean_environment(tmp_path, MLFLOW_TRACKING_URI=url, PREFECT_API_URL=api)
            first = study(environment, tmp_path / "root")
            assert "4 ran" in first
            assert "4 cached" in study(environment, tmp_path / "root")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
            assert str(rebuild(tmp_path / "root")) == "1 experiments, 2 study runs, 4 stage runs"
            assert {"metrics", "logged_models"} <= dumped_tables(binaries, f"postgresql://{account}/mlflow")
            assert {"flow_run", "artifact"} <= dumped_tables(binaries, f"postgresql://{account}/prefect")
        finally:
            mlflow.kill()
    finally:
        prefect.kill()
    assert not list(tmp_path.rglob("*.db"))  # nothing fell back to sqlite
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"pg-pa55word" in path.read_bytes()]
    assert kept == []


def study(environment: dict[str, str], root: Path) -> str:
    """Evaluate the untrained model; what the command printed."""
    command = [*COMMAND, *SMALL, "--root", str(root)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dumped_tables(binaries: Path, url: str) -> set[str]:
    """Tables whose rows are in a dump, as the backup of docs/operations.md makes it."""
    dump = subprocess.run([binaries / "pg_dump", "-Fc", url], check=True, capture_output=True, timeout=120).stdout
    listed = subprocess.run(
        [binaries / "pg_restore", "--list"], input=dump, check=True, capture_output=True, timeout=60
    )
    lines = listed.stdout.decode().splitlines()
    return {line.split()[-2] for line in lines if " TABLE DATA " in line}
