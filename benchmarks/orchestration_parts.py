"""The parts of `benchmarks.orchestration`: each call is one repetition and returns its numbers."""

import json
import os
import random
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.local_servers import free_port, wait_until_healthy

ROOT = Path(__file__).parents[1]
ARTIFACTS = 10_000
STAGES = 60
GIGABYTE = 10**9


def milliseconds(action: Callable[[], object], times: int) -> float:
    """Median time of one call."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def child(function: str, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    """What a function of `benchmarks.orchestration_children` returned in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.orchestration_children", function, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{function} failed\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_keys() -> dict[str, float]:
    """Time of `make_spec` for every kind of stage, in the order of a study."""
    numbers = child("keys")
    first, again = list(numbers["first"].values()), statistics.mean(numbers["again"].values())
    return {
        "key_study_ms": (sum(first) + (STAGES - len(first)) * again) / STAGES,
        "key_mean_ms": statistics.mean(first),
        "key_again_ms": again,
        "slowest kind's first key in a process, ms of CPU": max(first),
    }


def measure_store(folder: Path) -> dict[str, float]:
    """Questions to a store of 10,000 artifacts, whose manifests are as large as real ones."""
    from alignment_core.changes import explain_miss
    from alignment_core.store import Store

    if not folder.exists():
        fill_store(folder)
    store = Store(folder)
    lines = store.ledger()
    draw = random.Random(len(os.listdir(folder)))
    hits = [draw.choice(lines[1:-1]) for _ in range(200)]
    remaining = iter(hits)
    oldest = store.manifest(lines[0]["stage"], lines[0]["key"])
    changed = oldest.components.model_copy(update={"config": {"seed": -1}})

    def hit() -> None:
        line = next(remaining)
        if store.lookup(line["stage"], line["key"]).status != "hit":
            raise RuntimeError(f"{line} is not found")

    return {
        "lookup_hit_ms": milliseconds(hit, len(hits)),
        "lookup_missing_ms": milliseconds(lambda: store.lookup("sft", uuid.uuid4().hex), 50),
        "lookup_deleted_ms": milliseconds(lambda: store.lookup("sft", "f" * 32), 50),
        "explain_first_ms": milliseconds(lambda: explain_miss(store, changed, "never seen"), 30),
        "explain_oldest_ms": milliseconds(lambda: explain_miss(store, changed, oldest.label), 30),
        "find_ms": milliseconds(lambda: store.find(lines[5000]["key"][:12]), 10),
    }


def fill_store(folder: Path) -> None:
    """10,000 small artifacts and one that was deleted, written without the fsyncs of a real publication."""
    from alignment_core.fingerprint import fingerprint
    from alignment_core.manifest import MANIFEST, Components, Manifest, Producer, content_digest, describe_file
    from alignment_core.training_config import GRPOConfig

    code = fingerprint("alignment_core.stages.sft:run")
    ledger = []
    for index in range(ARTIFACTS):
        config = {"seed": index, "grpo": GRPOConfig().model_dump(mode="json")}
        components = Components(stage="sft", config=config, inputs={}, code=code.definitions, versions=code.versions)
        key = components.key()
        target = folder / "sft" / key
        (target / "record").mkdir(parents=True)
        for name in ("summary.json", "model.safetensors", "record/events.jsonl"):
            (target / name).write_text(f"{index}\n", encoding="utf-8")
        files = {name: describe_file(target / name) for name in ("summary.json", "model.safetensors")}
        manifest = Manifest(
            stage="sft",
            key=key,
            label=f"sft/{index}",
            digest=content_digest(files),
            files=files,
            components=components,
            parents={},
            producer=Producer(started=float(index), seconds=1.0, host="here"),
        )
        (target / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        ledger.append({"stage": "sft", "key": key, "label": manifest.label, "time": float(index)})
    ledger.append({"stage": "sft", "key": "f" * 32, "label": "deleted", "time": 0.0})
    (folder / ".ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ledger), encoding="utf-8")


def measure_checkpoint(folder: Path) -> dict[str, float]:
    """1 GB of weights and moments through the run context, against the same bytes through write and fsync."""
    return dict(child("checkpoint", str(folder)))


class StudyBench:
    """A study of 60 small stages, and the same stages called directly."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        port = free_port()
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        self.clean = {**clean, "HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true"}
        self.served = {
            **self.clean,
            "PREFECT_HOME": str(folder / "server"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self._log = (folder / "server.log").open("w")
        self._server = subprocess.Popen(command, env=self.served, stdout=self._log, stderr=self._log)
        wait_until_healthy(self.served["PREFECT_API_URL"])

    def close(self) -> None:
        """End the server."""
        self._server.terminate()
        self._server.wait(timeout=30)
        self._log.close()

    def measure(self) -> dict[str, float]:
        """One study computed, then found, then found without a server; each in a process of its own."""
        place = self.folder / uuid.uuid4().hex[:8]
        direct = child("direct", str(place / "direct"), str(STAGES))["seconds"]
        computed = self._study(place, self.served, "ran")
        running = self._study(place, self.served, "cached")
        cold = self._study(place, {**self.clean, "PREFECT_HOME": str(place / "home")}, "cached")
        return {
            "stage_overhead_s": (computed["seconds"] - direct) / STAGES,
            "cached_running_s": running["whole"],
            "cached_cold_s": cold["whole"],
        }

    def _study(self, root: Path, environment: dict[str, str], how: str) -> dict[str, float]:
        began = time.perf_counter()
        numbers = child("study", str(root), str(STAGES), environment=environment)
        if numbers["how"] != [how]:
            raise RuntimeError(f"stages came as {numbers['how']}, not {how}")
        return {"whole": time.perf_counter() - began, "seconds": numbers["seconds"]}
