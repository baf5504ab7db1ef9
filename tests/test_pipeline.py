"""The real command on the smoke preset: real processes, the embedded Prefect server, sqlite MLflow.

One run fills a root; the tests then ask what a second command does with it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_core.store import Store

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]
Alignflow = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def alignflow(tmp_path_factory: pytest.TempPathFactory) -> Alignflow:
    """The command with a home of its own, so that Prefect's records start empty."""
    home = tmp_path_factory.mktemp("home")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environment = {
        **clean,
        "HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "COLUMNS": "200",
    }

    def call(*arguments: str, prefix: tuple[str, ...] = (), check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [COMMAND[0], *prefix, *COMMAND[1:], *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=400)
        if check and done.returncode:
            raise AssertionError(f"{arguments} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return call


@pytest.fixture(scope="module")
def study(alignflow: Alignflow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished smoke study."""
    root = tmp_path_factory.mktemp("study")
    done = alignflow("run", "smoke", "--root", str(root))
    assert " 0 cached" in done.stdout, done.stdout
    return root


def stages(output: str) -> dict[str, str]:
    """Label -> ran | cached | resumed, from the command's own lines."""
    found = {}
    for line in output.splitlines():
        words = line.split()
        if words and words[0] in {"ran", "cached", "resumed"}:
            rest = words[1:] if words[0] == "cached" else words[3:]
            key = next(
                i for i, word in enumerate(rest) if len(word) == 12 and all(c in "0123456789abcdef" for c in word)
            )
            found[" ".join(rest[:key])] = words[0]
    return found


def test_the_second_run_computes_nothing_and_imports_no_torch(alignflow: Alignflow, study: Path) -> None:
    done = alignflow("run", "smoke", "--root", str(study), prefix=("-X", "importtime"))
    shown = stages(done.stdout)
    assert len(shown) >= 20
    assert set(shown.values()) == {"cached"}
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "prefect" in imported
    assert not imported & {"torch", "transformers", "mlflow", "datasets"}


def test_a_grpo_setting_reruns_grpo_its_evaluation_and_the_report_only(alignflow: Alignflow, study: Path) -> None:
    done = alignflow("run", "smoke", "--root", str(study), "--set", "grpo.optimizer.learning_rate=1e-4")
    again = {label for label, how in stages(done.stdout).items() if how == "ran"}
    name = "grpo/base/seed0"
    assert again == {name, f"{name}: sample test", f"{name}: grade test", "analyze", "report"}
    assert "config changed: grpo.optimizer.learning_rate 0.0002 -> 0.0001" in done.stdout


def test_a_deleted_artifact_reruns_its_producer_and_says_so(alignflow: Alignflow, study: Path) -> None:
    deleted = next((study / "data" / "store" / "filter").iterdir())
    shutil.rmtree(deleted)
    done = alignflow("run", "smoke", "--root", str(study))
    shown = stages(done.stdout)
    assert {label for label, how in shown.items() if how == "ran"} == {"filter traces"}
    assert "its artifact was deleted" in done.stdout


def test_members_of_a_sweep_differ_in_their_weights(study: Path) -> None:
    weights = {
        manifest.label: {name: entry.sha256 for name, entry in manifest.files.items() if name.endswith(".safetensors")}
        for manifest in Store(study / "data" / "store").manifests()
        if manifest.stage in {"sft", "grpo"}
    }
    assert len([label for label in weights if label.startswith("sft/")]) == 4
    distinct = {json.dumps(files, sort_keys=True) for files in weights.values()}
    assert all(weights.values())
    assert len(distinct) == len(weights)


def test_mlflow_holds_one_run_per_stage_with_its_points(study: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{study / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smoke")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=500)
    keys = [run.data.tags["alignflow.stage_key"] for run in runs if "alignflow.stage_key" in run.data.tags]
    assert len(keys) == len(set(keys))
    assert {run.info.status for run in runs} == {"FINISHED"}
    grpo = next(run for run in runs if run.info.run_name == "grpo/base/seed0")
    points = client.get_metric_history(grpo.info.run_id, "train/reward")
    assert [point.step for point in points] == [1, 2, 3, 4]
    assert grpo.data.params["grpo.group_size"] == "8"
    parent = next(run for run in runs if run.data.tags["alignflow.kind"] == "study")
    assert "final/zero-shot/accuracy" in parent.data.metrics
    assert {"report.html", "figures", "stages.json"} <= {
        file.path for file in client.list_artifacts(parent.info.run_id)
    }


def test_a_study_that_shares_all_its_runs_shows_them_in_its_own_experiment(
    alignflow: Alignflow, study: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    def curve(experiment: str) -> list[tuple[int, float, int]]:
        found = client.get_experiment_by_name(experiment)
        assert found is not None
        runs = {run.info.run_name: run for run in client.search_runs([found.experiment_id], max_results=500)}
        points = client.get_metric_history(runs["grpo/base/seed0"].info.run_id, "train/reward")
        return sorted((point.step, point.value, point.timestamp) for point in points)

    described = tmp_path / "second.yaml"
    described.write_text("extends: smoke\nname: second\n")
    done = alignflow("run", str(described), "--root", str(study))
    assert stages(done.stdout)["grpo/base/seed0"] == "cached"
    client = MlflowClient(f"sqlite:///{study / 'mlruns' / 'mlflow.db'}")
    assert curve("second") == curve("smoke") != []


def test_eval_exports_rows_and_summary(alignflow: Alignflow, study: Path, tmp_path: Path) -> None:
    alignflow("eval", "smoke", "--root", str(study), "--out", str(tmp_path / "results"))
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "results" / "results.jsonl").read_text().splitlines()]
    assert summary["n"] == len(rows) == 100
    assert sum(row["reward"] for row in rows) == summary["n_correct"]


def test_an_exported_model_loads_as_a_plain_checkpoint_and_evaluates(
    alignflow: Alignflow, study: Path, tmp_path: Path
) -> None:
    listed = alignflow("artifacts", "ls", "--stage", "grpo", "--root", str(study)).stdout.splitlines()
    assert listed[0].split()[-2:] == ["study", "label"]
    key = listed[1].split()[0]
    folder = tmp_path / "model"
    alignflow("export", key, str(folder), "--root", str(study))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "qwen2"
    assert len(AutoTokenizer.from_pretrained(folder)("1 + 1")["input_ids"]) > 0
    done = alignflow("eval", "smoke", "--root", str(study), "--model", key)
    assert set(stages(done.stdout).values()) == {"cached"}  # the study has evaluated this very model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "smok"), "did you mean 'smoke'?"),
        (("run", "smoke", "--set", "grop.n_grpo_steps=3"), "did you mean 'grpo'?"),
        (("run", "smoke", "--set", "grpo.group_size=7"), "not a multiple"),
        (("run", "smoke", "--set", "nonsense"), "is not key=value"),
        (("artifacts", "show", "zzzz"), "no artifact"),
        (("run", "smoke", "--root", "/proc/nowhere"), "Choose another folder with --root"),
    ],
)
def test_bad_input_is_one_clear_message(alignflow: Alignflow, tmp_path: Path, arguments, words: str) -> None:  # type: ignore[no-untyped-def]
    extra = () if "--root" in arguments else ("--root", str(tmp_path))
    (tmp_path / "data" / "store").mkdir(parents=True)
    done = alignflow(*arguments, *extra, check=False)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "data" / "store").glob("*/*"))


def test_a_member_that_fails_leaves_the_rest_of_the_study_and_its_report(alignflow: Alignflow, study: Path) -> None:
    """One question asked once has no right answer to learn from; what waits for that member is left out, too."""
    experiments = [
        {"name": "sft", "method": "sft", "settings": {"examples.size": 64}},
        {
            "name": "ei",
            "method": "expert_iteration",
            "members": {"one": {"expert_iteration.questions_per_step": 1, "expert_iteration.group_size": 1}},
            "choice": {},
        },
        {"name": "more", "method": "sft", "start": "ei"},
        {"name": "last", "method": "sft", "settings": {"examples.size": 64, "sft.epochs": 2}},
    ]
    wanted = ("run", "smoke", "--root", str(study), "--set", f"experiments={json.dumps(experiments)}")
    done = alignflow(*wanted, check=False)
    assert done.returncode == 1
    assert "not all of this study could be done; the rest was, and is kept" in done.stderr
    assert "ei/one/seed0: none of 1 samples is right" in done.stderr
    assert "more: waits for the winner of ei" in done.stderr
    assert "Traceback" not in done.stderr
    shown = stages(done.stdout)
    assert shown["last/seed0: grade test"] == shown["report"] == "ran"
    report = next(word for word in done.stderr.split() if word.endswith("report.html"))
    page = Path(report).read_text(encoding="utf-8")
    assert "Not all of this study is done." in page
    assert "ei/one/seed0 failed: none of 1 samples is right" in page
    assert "stages: " in done.stdout, "the table of what was done comes before the error"
