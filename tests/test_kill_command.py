"""The whole command killed: with SIGKILL, all its processes at once, and with Ctrl-C and SIGTERM as people do it."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from waiting import matching, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]
SETTINGS = (
    "model.scratch.documents=3000",
    "data.arithmetic.max_total=7",
    "data.arithmetic.step_shares=[1.0]",
    "data.arithmetic.train=128",
    "experiments=[{name: sft, method: sft}, {name: grpo/base, method: grpo}]",
    "grpo.n_grpo_steps=20",
)
"""Smoke, smaller still, but with a GRPO run long enough to be met in the middle."""
GRPO = "grpo/base/seed0"


class Command:
    """`alignflow run smoke` on one root, with a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.root, self.home = folder / "root", folder / "home"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        own = {"HOME": str(self.home), "PREFECT_HOME": str(self.home / "prefect"), "COLUMNS": "200"}
        operation = {"ALIGNFLOW_CHECKPOINT_SECONDS": "0.3", "PYTHONUNBUFFERED": "1"}
        self.environment = {**clean, **own, **operation}
        self.home.mkdir()

    def start(self, *settings: str) -> subprocess.Popen[str]:
        """The command, in a process group and session of its own."""
        options = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
        return subprocess.Popen(
            [*COMMAND, "run", "smoke", *options, "--root", str(self.root)],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start_until_mid_grpo(self, *settings: str) -> subprocess.Popen[str]:
        """The command, once GRPO has saved further than it had."""
        before, began = self.grpo_step(), time.monotonic()
        process = self.start(*settings)
        while self.grpo_step() <= before:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() - began < 280, "GRPO saved nothing"
            time.sleep(0.02)
        return process

    def grpo_step(self) -> int:
        """Step of the newest checkpoint of the GRPO run under way; 0 without one."""
        found = matching(self.root / "data" / "store" / ".work", "grpo-*/checkpoints/[0-9]*/complete.json")
        return max((int(marker.parent.name) for marker in found), default=0)

    def finish(self, *settings: str) -> str:
        """Output of the command that nobody disturbs."""
        process = self.start(*settings)
        output, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
        return output


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """One root: the first test fills it, each later one changes the learning rate, so that only GRPO runs again."""
    return Command(tmp_path_factory.mktemp("command"))


def session_members(session: int) -> list[str]:
    """Command lines of the processes of a session that still live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            line = stat.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(line)
    return found


def kill_everything(command: Command, process: subprocess.Popen[str]) -> None:
    """SIGKILL to every process the command started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    # A grading child has a process group of its own: it ends by itself, in a moment.
    wait_until(lambda: not session_members(process.pid), "the end of what the command started")
    for server in embedded_servers(command):
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


def require_whole(command: Command) -> None:
    """MLflow: one run per stage key, one point per step and metric, nothing running; Prefect: nothing running."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{command.root / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smoke")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=500)
    assert "RUNNING" not in {run.info.status for run in runs}
    keys = [run.data.tags["alignflow.stage_key"] for run in runs if "alignflow.stage_key" in run.data.tags]
    assert len(keys) > 10
    assert len(keys) == len(set(keys))
    grpo = [run for run in runs if run.info.run_name == GRPO]
    assert {run.info.status for run in grpo} == {"FINISHED"}
    for run in grpo:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/reward")]
        assert steps == list(range(1, 21))
    with sqlite3.connect(command.home / "prefect" / "prefect.db") as database:
        states = Counter(row[0] for row in database.execute("select state_type from flow_run"))
    assert states["RUNNING"] == 0, states
    assert not list((command.root / "data" / "store" / ".work").glob("*/checkpoints"))


def test_the_command_killed_once_in_the_middle_of_grpo_goes_on_there(command: Command) -> None:
    kill_everything(command, command.start_until_mid_grpo())
    step = command.grpo_step()
    output = command.finish()
    assert f"resumed grpo at step {step} of 20" in output
    assert " 1 resumed" in output
    require_whole(command)


def test_the_command_killed_twice_in_a_row_goes_on_from_the_second(command: Command) -> None:
    change = "grpo.optimizer.learning_rate=1e-4"
    kill_everything(command, command.start_until_mid_grpo(change))
    first = command.grpo_step()
    kill_everything(command, command.start_until_mid_grpo(change))
    second = command.grpo_step()
    assert second > first > 0
    output = command.finish(change)
    assert f"resumed grpo at step {second} of 20" in output
    require_whole(command)


def embedded_servers(command: Command) -> list[int]:
    """Process ids of the Prefect servers that live on this root's database."""
    mark, found = f"PREFECT_HOME={command.home / 'prefect'}".encode(), []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"embedded_server" in path.read_bytes() and mark in path.with_name("environ").read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def test_the_embedded_server_ends_with_a_command_that_was_killed(command: Command) -> None:
    process = command.start_until_mid_grpo("grpo.optimizer.learning_rate=3e-4")
    assert len(embedded_servers(command)) == 1
    process.kill()  # this one process: nobody is left who could stop the server
    process.communicate()
    wait_until(lambda: not embedded_servers(command), "the end of the server")
    command.finish("grpo.optimizer.learning_rate=3e-4")
    require_whole(command)


@pytest.mark.parametrize(
    ("sent", "whom", "code"),
    [(signal.SIGINT, "group", 130), (signal.SIGTERM, "process", 143), (signal.SIGTERM, "group", 143)],
)
def test_ctrl_c_and_sigterm_save_and_end_quickly_and_leave_no_process(
    command: Command, sent: signal.Signals, whom: str, code: int
) -> None:
    change = f"grpo.optimizer.learning_rate={code + len(whom)}e-6"
    process = command.start_until_mid_grpo(change)
    began = time.monotonic()
    (os.killpg if whom == "group" else os.kill)(process.pid, sent)
    _, errors = process.communicate(timeout=100)
    seconds = time.monotonic() - began
    assert process.returncode == code, errors
    assert errors.strip().startswith("alignflow: interrupted")
    assert "Traceback" not in errors
    assert seconds < 55  # a busy machine took 10; a client that retries a dead server takes over 60
    assert not session_members(process.pid)
    assert not embedded_servers(command)
    assert f"resumed grpo at step {command.grpo_step()} of 20" in command.finish(change)
    require_whole(command)
