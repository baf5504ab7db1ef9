"""A study in two interpreters: the real command in this one, every stage that samples in one that has vllm.

`.ci/run` names that interpreter in ALIGNFLOW_TEST_VLLM_PYTHON; so does, by hand,

    python3 -m flows.bootstrap_vllm
    ALIGNFLOW_TEST_VLLM_PYTHON=$PWD/.vllm/bin/python .venv/bin/python -m pytest tests/test_vllm_study.py
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]
PYTHON = os.environ.get("ALIGNFLOW_TEST_VLLM_PYTHON")
SETTINGS = (
    "sampling.backend=vllm",
    "sampling.vllm.kv_cache_gb=0.05",
    "sampling.vllm.enforce_eager=true",
    "model.scratch.hidden_size=128",  # four heads of 32, the smallest that vllm's CPU kernels take
    "model.scratch.documents=3000",
    "data.arithmetic.max_total=7",
    "data.arithmetic.step_shares=[1.0]",
    "data.arithmetic.train=128",
    # GRPO not from base: so small a model earns no reward there, and nothing would move.
    "experiments=[{name: sft, method: sft}, {name: ei/base, method: expert_iteration}, "
    "{name: grpo/sft, method: grpo, start: sft}]",
    "grpo.min_tokens=0",  # vllm's log-probs are of what may be drawn: those of a banned EOS would be no gap of a sync
)
STARTED, SHARED = "an engine started for it", "the engine of an earlier stage or round"
PROBE = re.compile(r"sampling: vllm \d[^,]*, (.*); weights synced in memory, log-probs of the probe within (\S+) nats")


class Study:
    """`alignflow run smoke` on one root, run twice."""

    def __init__(self, folder: Path) -> None:
        assert PYTHON is not None
        self.root = folder / "root"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        home = {"HOME": str(folder), "PREFECT_HOME": str(folder / "prefect"), "COLUMNS": "200"}
        self.environment = {**clean, **home, "ALIGNFLOW_STAGE_PYTHON": PYTHON}
        self.first, self.second = self.run(), self.run("-X", "importtime")

    def run(self, *prefix: str) -> subprocess.CompletedProcess[str]:
        """The command."""
        options = [word for setting in SETTINGS for word in ("--set", setting)]
        command = [sys.executable, *prefix, "-c", "from flows.cli import main; main()", "run", "smoke", *options]
        done = subprocess.run(
            [*command, "--root", str(self.root)],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done

    def stages(self, name: str) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Label -> (manifest, events) of every artifact of a stage."""
        found = {}
        for folder in (self.root / "data" / "store" / name).iterdir():
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            lines = (folder / "record" / "events.jsonl").read_text(encoding="utf-8").splitlines()
            found[manifest["label"]] = (manifest, [json.loads(line) for line in lines])
        return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One study, run twice."""
    if PYTHON is None:
        pytest.skip("NOT TESTED: a study that samples with vllm. ALIGNFLOW_TEST_VLLM_PYTHON names no interpreter")
    return Study(tmp_path_factory.mktemp("vllm-study"))


def probes(events: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """(whose engine, difference of the probe's log-probs) of the lines that say so."""
    found = [PROBE.match(event["name"]) for event in events if event["kind"] == "say"]
    return [(match.group(1), float(match.group(2))) for match in found if match is not None]


def test_the_study_runs_and_its_second_run_computes_nothing(study: Study) -> None:
    assert re.search(r"stages: \d+ ran, 0 resumed, 0 cached", study.first.stdout)
    ran = re.search(r"stages: (\d+) ran", study.first.stdout)
    assert ran is not None
    assert f"stages: 0 ran, 0 resumed, {ran.group(1)} cached" in study.second.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in study.second.stderr.splitlines()}
    assert "prefect" in imported
    assert not imported & {"torch", "vllm"}


def test_every_stage_that_samples_is_keyed_and_computed_by_vllm(study: Study) -> None:
    sampled = {**study.stages("sample"), **study.stages("grpo")}
    assert len(sampled) >= 8
    for label, (manifest, events) in sampled.items():
        assert manifest["components"]["config"]["sampling"]["backend"] == "vllm", label
        assert re.fullmatch(r"\d+\.\d+.*", manifest["components"]["versions"]["vllm"]), label
        assert len(probes(events)) == 1, label
        assert probes(events)[0][1] < 1e-4, label


def test_one_engine_serves_the_rounds_of_expert_iteration_and_grpo(study: Study) -> None:
    whose = {
        label: probes(events)[0][0]
        for name in ("sample", "grpo")
        for label, (_, events) in study.stages(name).items()
    }  # fmt: skip
    assert sorted(whose.values()) == sorted([STARTED, *[SHARED] * (len(whose) - 1)])
    assert whose["ei/base/seed0/round-01: sample"] == whose["ei/base/seed0/round-02: sample"] == SHARED
    assert whose["grpo/sft/seed0"] == SHARED


def test_grpo_samples_from_the_weights_it_has_just_trained(study: Study) -> None:
    [(_, events)] = study.stages("grpo").values()
    points = [event["metrics"] for event in events if event["kind"] == "point" and event["step"] > 0]
    assert [event["step"] for event in events if event["kind"] == "point"] == [0, 1, 2, 3, 4]
    assert all(point["train/grad_norm"] > 0 for point in points)
    # The trainer's log-probs of what was sampled, against those of the sampler: the weights moved at every step.
    assert max(point["train/sampler_gap_max"] for point in points) < 1e-3
    assert all(point["time/sync"] > 0 for point in points)


def test_the_rounds_of_expert_iteration_raise_its_format_rate(study: Study) -> None:
    rates = {}
    for label, (manifest, _) in study.stages("grade").items():
        summary = study.root / "data" / "store" / "grade" / manifest["key"] / "summary.json"
        rates[label] = json.loads(summary.read_text(encoding="utf-8"))["format_rate"]
    assert rates["ei/base/seed0: grade test"] > rates["zero-shot: grade test"] + 0.3
