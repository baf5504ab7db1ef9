"""Two GRPO runs of the tiny study side by side in MLflow's own pages, in a real browser: names, curves, settings.

Screenshots are kept under build/mlflow-page (or ALIGNFLOW_SCREENSHOTS), for a person to look at.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from browser import EXECUTABLE, Browser
from real_servers import COMMAND, ROOT, clean_environment, mlflow_server

from tasks.tracking import connect

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(500),
    pytest.mark.skipif(EXECUTABLE is None, reason="no chromium on PATH: apt-get install chromium to run this test"),
]
SHOTS = Path(os.environ.get("ALIGNFLOW_SCREENSHOTS") or ROOT / "build" / "mlflow-page")
SHORTER = {
    "model.scratch.documents": 9000,
    "grpo.n_grpo_steps": 6,
    "grpo.validate_every": 2,
    "grpo.rollout_batch_size": 64,
    "grpo.train_batch_size": 64,
    "seeds": "[0,1]",
    "only": "[grpo/base]",
}
"""The tiny study with less of everything: what is looked at is how MLflow shows it."""
NAMES = ["grpo/base/seed0", "grpo/base/seed1"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Any]]]:
    """Address of a tracking server, and the study's two GRPO runs on it."""
    folder = tmp_path_factory.mktemp("compared")
    server, url = mlflow_server(folder)
    words = [word for name, value in SHORTER.items() for word in ("--set", f"{name}={value}")]
    try:
        server.wait()
        done = subprocess.run(
            [*COMMAND, "grpo", "tiny", *words, "--root", str(folder / "root")],
            env=clean_environment(folder, MLFLOW_TRACKING_URI=url),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr
        client = connect(url)
        experiment = client.get_experiment_by_name("tiny")
        runs = client.search_runs([experiment.experiment_id], "tags.`alignflow.kind` = 'grpo'")
        yield url, sorted(runs, key=lambda run: str(run.info.run_name))
    finally:
        server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        SHOTS.mkdir(parents=True, exist_ok=True)
        opened.resize(1280, 900)
        yield opened


def address(url: str, page: str, runs: list[Any], **more: object) -> str:
    """One of MLflow's pages over several runs; its parameters are JSON."""
    parameters = {"runs": [run.info.run_id for run in runs], "experiments": [runs[0].info.experiment_id], **more}
    return f"{url}/#/{page}?" + "&".join(f"{name}={quote(json.dumps(value))}" for name, value in parameters.items())


def test_both_runs_have_the_same_metrics_at_the_same_steps(compared: tuple[str, list[Any]]) -> None:
    url, runs = compared
    assert [run.info.run_name for run in runs] == NAMES
    first, second = (set(run.data.metrics) for run in runs)
    assert first ^ second <= {"train/mean_length_correct", "train/mean_length_incorrect"}  # a batch may lack either
    assert {"eval/accuracy", "final/accuracy", "best/accuracy", "train/reward", "train/loss"} <= first
    client = connect(url)
    for name in ("eval/accuracy", "train/loss", "train/entropy"):
        steps = [[point.step for point in client.get_metric_history(run.info.run_id, name)] for run in runs]
        assert steps[0] == steps[1]


@pytest.mark.parametrize("metric", ["eval/accuracy", "train/reward"])
def test_the_curves_of_both_are_drawn(metric: str, compared: tuple[str, list[Any]], browser: Browser) -> None:
    url, runs = compared
    browser.open("about:blank")
    browser.open(address(url, "metric", runs, metric=metric, plot_metric_keys=[metric]))
    drawn = "[...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data)"
    browser.wait(f"new Set({drawn}.map(line => line.name)).size == 2")
    lines = browser.run(f"{drawn}.map(line => [line.name, Array.from(line.y)])")
    client = connect(url)
    for run in runs:
        history = [point.value for point in client.get_metric_history(run.info.run_id, metric)]
        shown = next(values for name, values in lines if name == run.info.run_name)
        assert len(shown) == len(history) >= 4
        assert shown == pytest.approx(history, abs=1e-3)
    browser.screenshot(SHOTS / f"{metric.replace('/', '-')}.png")


def test_their_settings_stand_side_by_side(compared: tuple[str, list[Any]], browser: Browser) -> None:
    url, runs = compared
    browser.open("about:blank")
    browser.open(address(url, "compare-runs", runs))
    browser.wait("document.body.innerText.includes('grpo.optimizer.learning_rate')")
    text = browser.run("document.body.innerText")
    for words in (*NAMES, "final/accuracy", "best/accuracy", "grpo.loss_type"):
        assert words in text
    browser.screenshot(SHOTS / "compare.png", tallest=3000)
