"""What the crash matrix runs on: two servers, a shared store, hosts with directories of their own, a laptop.

Every fault gets a GRPO run of its own, by its seed, in the middle of which it strikes; all else that the study needs
is in the shared store before. The undisturbed twin of each run is computed in a store that no host knows.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hosts_kit import ALIGNFLOW, ROOT, Hosts
from kill_root import record
from real_servers import Server, mlflow_server
from shared_hosts import shared
from waiting import matching

from alignment_core.attempts import under_way
from alignment_core.events import EVENTS
from alignment_core.remote import RemoteFolder
from alignment_core.stage import StageOutcome, StageSpec
from alignment_core.stage_server import Job
from alignment_core.stage_server import Server as StageServer
from alignment_core.store import Store
from tasks.tracking import connect

STEPS = 40
LEASE = 8.0
GPUS = 3
SETTINGS: dict[str, Any] = {
    "model.scratch.documents": 3000,
    "data.arithmetic.max_total": 7,
    "data.arithmetic.step_shares": [1.0],
    "data.arithmetic.train": 128,
    "evaluation.limit": 24,
    "plain_prompt": None,
    "experiments": [{"name": "grpo/base", "method": "grpo"}],
}
"""Smoke, smaller still, but with a GRPO run long enough to be met in the middle."""
WORKING = ("Pending", "Running", "Cancelling")
"""States of flow runs that hold a slot of their pool."""


@dataclass
class Case:
    """One GRPO run that a fault strikes."""

    seed: int
    steps: int
    parent: subprocess.Popen[Any]
    key: str = ""
    struck: float = 0.0
    """Monotonic time of the fault."""
    reached: int = 0
    """Last step that was recorded anywhere when the fault struck."""
    twin: "Future[StageOutcome] | None" = None
    """The same run, undisturbed."""
    logs: list[str] = field(default_factory=list)
    """Of all commands that asked for it."""

    @property
    def log(self) -> str:
        """Name of the newest command's log."""
        return self.logs[-1]


class CrashBench(Hosts):
    """Servers, hosts, the laptop that the studies are started from, and the table."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.store = folder / "shared"
        mlflow_folder = folder / "mlflow"
        mlflow_folder.mkdir()
        self.mlflow: Server
        self.mlflow, self.tracking = mlflow_server(mlflow_folder)
        self.environment |= {
            "MLFLOW_TRACKING_URI": self.tracking,
            "ALIGNFLOW_STORE": str(self.store),
            "ALIGNFLOW_UPLOAD_SECONDS": "0.6",
            "ALIGNFLOW_LEASE_SECONDS": f"{LEASE:g}",
        }
        self.prefect: subprocess.Popen[Any] | None = None
        self.twins = Twins(folder, self.store)
        self.rows: list[tuple[str, ...]] = []

    def set_up(self) -> None:
        """Servers, pools with as many slots as there are GPUs, the hosts, and all that the GRPO runs start from."""
        self.start_prefect()
        self.mlflow.wait()
        self.done(*ALIGNFLOW, "setup", "--limit", f"h100={GPUS}")
        for name in ("first", "second", "third"):
            self.serve(name)
        first = self.ask("eval", "fill.log")
        assert first.wait(timeout=280) == 0, self.log("fill.log")[-3000:]

    def close(self) -> None:
        """End everything, stopped processes too."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        with ExitStack() as stack:
            for close in (self.twins.close, self.mlflow.kill, super().close):
                stack.callback(close)

    def start_prefect(self) -> None:
        """Start, or start again, Prefect's server."""
        self.start_server()
        self.prefect = self._processes[-1]

    def kill_prefect(self) -> None:
        """SIGKILL, with all it started."""
        assert self.prefect is not None
        os.killpg(self.prefect.pid, signal.SIGKILL)
        self.prefect.wait()

    def home(self, name: str) -> Path:
        """All directories of one machine."""
        return self.folder / "machines" / name

    def _own(self, name: str) -> dict[str, str]:
        home = self.home(name)
        (home / "root").mkdir(parents=True, exist_ok=True)
        return {"HOME": str(home), "PREFECT_HOME": str(home / "prefect")}

    def serve(self, name: str) -> None:
        """`alignflow worker` on the machine of that name, which has one GPU."""
        own = self._own(name)
        command = [*ALIGNFLOW, "worker", "--gpu", "0", "--name", name, "--root", str(self.home(name) / "root")]
        self.hosts[name] = self.start(command, f"{name}.log", ROOT, **own)

    def ask(
        self, flow: str, log: str, seed: int = 0, steps: int = STEPS, machine: str = "laptop"
    ) -> subprocess.Popen[Any]:
        """A study's command, under way."""
        values = {**SETTINGS, "seeds": [seed], "grpo.n_grpo_steps": steps}
        words = [word for name, value in values.items() for word in ("--set", f"{name}={json.dumps(value)}")]
        own = self._own(machine)
        root = str(self.home(machine) / "root")
        command = [*ALIGNFLOW, flow, "smoke", *words, "--root", root, "--executor", "work-pool"]
        return self.start(command, log, ROOT, **own)

    # Cases

    def begin(self, seed: int, steps: int = STEPS) -> Case:
        """The command of a GRPO run."""
        log = f"case-{seed}-0.log"
        return Case(seed, steps, self.ask("grpo", log, seed, steps), logs=[log])

    def begin_and_meet(self, seed: int, steps: int = STEPS) -> Case:
        """A GRPO run, met in the middle."""
        case = self.begin(seed, steps)
        self.until(lambda: self.is_met(case))
        self.mark(case)
        return case

    def ask_again(self, case: Case, machine: str = "laptop") -> subprocess.Popen[Any]:
        """The same command, once more."""
        case.logs.append(f"case-{case.seed}-{len(case.logs)}.log")
        case.parent = self.ask("grpo", case.log, case.seed, case.steps, machine)
        return case.parent

    def is_met(self, case: Case) -> bool:
        """Whether it is under way, and its uploads have begun."""
        return bool(case.key or self.run_of(case)) and self.uploaded(case) >= 2

    def mark(self, case: Case) -> None:
        """Note the time, and how far the run is."""
        run = self.run_of(case)
        assert run is not None
        case.twin = self.twins.compute(StageSpec.model_validate(run["parameters"]["request"]["spec"]))
        case.struck, case.reached = time.monotonic(), self.step(case)
        assert 0 < case.reached < case.steps - 2, f"GRPO is at step {case.reached}: the fault would strike too late"

    def run_of(self, case: Case) -> dict[str, Any] | None:
        """The flow run that computes it now."""
        for run in self.runs_of(case):
            if run["state_name"] == "Running":
                case.key = next(tag for tag in run["tags"] if tag.startswith("stage-key:")).partition(":")[2]
                return run
        return None

    def runs_of(self, case: Case) -> list[dict[str, Any]]:
        """All flow runs that were made for it, in order."""
        return [run for run in self.flow_runs("stage:grpo") if run["name"].endswith(f"grpo/base/seed{case.seed}")]

    def uploaded(self, case: Case) -> int:
        """Step of the furthest checkpoint in the shared store; 0 without one."""
        found = matching(self.store / ".work", f"grpo-{case.key}/*/shared.json")
        return max((int(marker.parent.name.partition("-")[2]) for marker in found), default=0)

    def attempts(self, case: Case) -> int:
        """The highest number that was taken for it."""
        found = (self.store / ".attempts" / f"grpo-{case.key}").glob("*.json")
        return max((int(path.stem) for path in found), default=0)

    def step(self, case: Case) -> int:
        """Last step that any host has recorded; the last of all once a host has the artifact."""
        steps, machines = [0], self.folder / "machines"
        for path in matching(machines, f"*/root/data/store/.work/grpo-{case.key}/output/record/{EVENTS}"):
            with suppress(FileNotFoundError):
                steps += [int(step) for step in re.findall(r'"kind":"point","step":(\d+)', path.read_text())]
        finished = matching(machines, f"*/root/data/store/grpo/{case.key}/manifest.json")
        return case.steps if finished else max(steps)

    def pids(self, *words: str) -> list[int]:
        """Processes of this bench whose command line has all these words."""
        return [
            pid for pid in self._marked(f"PREFECT_API_URL={self.environment['PREFECT_API_URL']}") if said(pid, words)
        ]

    def pids_of(self, machine: str) -> list[int]:
        """Processes that live in the directories of a machine."""
        return self._marked(f"HOME={self.home(machine)}")

    def _marked(self, variable: str) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if variable.encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def machine_of(self, case: Case) -> str:
        """Where it runs."""
        run = self.run_of(case)
        assert run is not None
        return worker_of(run).removesuffix("-gpu0")

    def send(self, machine: str, number: signal.Signals) -> None:
        """A signal to every process of a machine at once."""
        for process in self.pids_of(machine):
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def stage_process(self, case: Case) -> int:
        """The process that computes it."""
        run = self.run_of(case)
        assert run is not None
        return int(run["infrastructure_pid"])

    def worker_process(self, case: Case) -> int:
        """The worker that runs it."""
        run = self.run_of(case)
        assert run is not None
        (worker,) = self.pids("flows.worker_process", f"--name {worker_of(run)} ")
        return worker

    # What is asked of every case

    def finish(self, case: Case, fault: str, told: str, lost: int | None = None, seconds: float = 280) -> None:
        """See its command end well; then nothing may be lost, doubled, redone or left, and the row is written."""
        code = case.parent.wait(timeout=seconds)
        assert code == 0, self.log(case.log)[-4000:]
        took = time.monotonic() - case.struck
        manifest = shared(str(self.store), self.folder / "reader").manifest("grpo", case.key)
        resumed = manifest.producer.resumed_from_step
        where = worker_of(self.runs_of(case)[-1])
        told += f"; {'went on' if resumed is None else f'resumed from step {resumed}'} on {where}"
        lost = (0 if resumed is None else case.reached - resumed) if lost is None else lost
        self.require_nothing_held(case)
        self.require_points(case)
        self.require_cached(case)
        equal = self.is_equal(case)
        self.rows.append((fault, told, f"{took:.0f}", str(max(lost, 0)), "yes" if equal else "NO"))
        assert equal

    def require_nothing_held(self, case: Case) -> None:
        """No flow run of it holds a slot, nobody beats for it, its shared checkpoints are gone."""
        states = Counter(run["state_name"] for run in self.runs_of(case))
        assert states["Completed"] == 1, states
        assert not states.keys() & set(WORKING), states
        remote = RemoteFolder(str(self.store))
        assert [one for one in under_way(remote) if one.name == f"grpo-{case.key}"] == []
        assert remote.children(f".work/grpo-{case.key}") == []

    def require_points(self, case: Case) -> None:
        """MLflow has one run of the stage, finished, with every point once."""
        client = connect(self.tracking)
        experiment = client.get_experiment_by_name("smoke")
        assert experiment is not None
        asked = f"tags.`alignflow.stage_key` = '{case.key}'"
        (run,) = self.until(lambda: client.search_runs([experiment.experiment_id], asked))
        self.until(lambda: client.get_run(run.info.run_id).info.status == "FINISHED", 60)
        for name in ("train/reward", "train/loss"):
            points = client.get_metric_history(run.info.run_id, name)
            assert [point.step for point in points] == list(range(1, case.steps + 1)), (name, points)

    def require_cached(self, case: Case) -> None:
        """What was there before was not computed again."""
        done = Counter(tag for run in self.flow_runs("stage:pretrain") for tag in run["tags"] if "stage-key" in tag)
        assert list(done.values()) == [1]
        kept = {stage: len(list((self.store / stage).glob("*/manifest.json"))) for stage in ("prepare", "pretrain")}
        assert kept == {"prepare": 1, "pretrain": 1}
        zero_shot = [run for run in self.flow_runs("stage:sample") if "zero-shot" in run["name"]]
        assert len(zero_shot) == 1

    def is_equal(self, case: Case) -> bool:
        """Whether the artifact has the content and the record of the run that nothing disturbed."""
        assert case.twin is not None
        ours = shared(str(self.store), self.folder / "reader")
        outcome, found = case.twin.result(timeout=280), ours.lookup("grpo", case.key).ref
        assert outcome.how == "ran"
        return found == outcome.ref and record(ours, found) == record(self.twins.store, outcome.ref)


class Twins:
    """Runs that nothing disturbs, one after another, in a process and a store of their own."""

    def __init__(self, folder: Path, shared_store: Path) -> None:
        self.store = Store(folder / "twin")
        self._shared = shared(str(shared_store), folder / "reader")
        self._server: StageServer | None = None
        self._thread = ThreadPoolExecutor(1)

    def compute(self, spec: StageSpec) -> "Future[StageOutcome]":
        """The twin of a stage whose inputs are in the shared store."""
        for ref in spec.inputs.values():
            if self.store.lookup(ref.stage, ref.key).ref is None:
                shutil.copytree(self._shared.path(ref), self.store.folder(ref))
        self._server = self._server or StageServer(sys.executable, self.store)
        return self._thread.submit(self._server.run, Job(spec=spec, annotations={}, reason=""), None)

    def close(self) -> None:
        """End the process, after the run it is at."""
        self._thread.shutdown(cancel_futures=True)
        if self._server is not None:
            self._server.close()


def said(pid: int, words: tuple[str, ...]) -> bool:
    """Whether the command line of a process has these words."""
    with suppress(FileNotFoundError, ProcessLookupError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return all(word in line for word in words)
    return False


def worker_of(run: dict[str, Any]) -> str:
    """Who took a flow run."""
    return str(run["labels"].get("prefect.worker.name", "nobody"))
