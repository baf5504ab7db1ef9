"""What Prefect's UI shows: names of runs, progress now and then, tables and links; never at the cost of a stage."""

import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import wait_until

from alignment_core.events import Event
from alignment_core.manifest import Components
from alignment_core.stage import StageSpec
from flows import runner
from tasks import prefect_view
from tasks.prefect_view import Progress, artifact_key, evaluation_row, link_to_mlflow, show_evaluations


def make_spec() -> StageSpec:
    components = Components(stage="import_model", config={}, inputs={}, code={}, versions={})
    return StageSpec(
        stage="import_model", label="grpo/base", config={}, inputs={}, components=components, key="A1b2c3" * 5
    )


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What Prefect was asked to show, in the place of a server; within a flow run."""
    shown: list[tuple[Any, ...]] = []
    monkeypatch.setattr(prefect_view, "runtime", SimpleNamespace(flow_run=SimpleNamespace(id="f")))

    def note(kind: str) -> Any:
        def create(data: Any, *more: Any, **words: Any) -> str:
            shown.append((kind, data if not more else more[0], words.get("key"), words.get("description")))
            return "id"

        return create

    for kind in ("link", "markdown", "table", "progress"):
        monkeypatch.setattr(prefect_view, f"create_{kind}_artifact", note(kind))
    monkeypatch.setattr(prefect_view, "update_progress_artifact", note("update"))
    return shown


@pytest.mark.parametrize("parts", [("mlflow", "0AbC"), ("evaluation", "ei/base/seed0/round-01: grade"), ("x_", "é?")])
def test_keys_are_lower_case_with_dashes(parts: tuple[str, ...]) -> None:
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", artifact_key(*parts))


def point(step: int) -> Event:
    return Event(kind="point", step=step, time=0.0, metrics={"train/loss": 0.5}, total=40)


def test_a_short_stage_tells_no_progress(written: list[tuple[Any, ...]]) -> None:
    progress = Progress(make_spec(), period=10)
    for step in range(40):
        progress.event(point(step))
    progress.close(finished=True)
    assert written == []
    assert progress._thread is None


def test_a_long_stage_tells_it_now_and_then_and_its_end(written: list[tuple[Any, ...]]) -> None:
    progress = Progress(make_spec(), period=0.1)
    began = time.monotonic()
    for step in range(1, 31):
        progress.event(point(step))
        time.sleep(0.02)
    wait_until(lambda: len(written) >= 2, "the first tellings")
    progress.close(finished=True)
    wait_until(lambda: written[-1][1] == 100.0, "the last one")  # which `close` waits for, but not for ever
    periods = (time.monotonic() - began) / 0.1
    assert written[0][0] == "progress"
    assert written[0][2] == "progress-import-model-a1b2c3a1b2c3"
    assert 3 <= len(written) <= periods + 2
    assert written[-1][0] == "update"
    assert written[-1][3] == "grpo/base: step 30 of 40  loss 0.5"
    shares = [entry[1] for entry in written]
    assert shares == sorted(shares)


def test_a_failed_stage_stays_where_it_was(written: list[tuple[Any, ...]]) -> None:
    progress = Progress(make_spec(), period=0)
    progress.event(point(10))
    wait_until(lambda: written, "its progress")
    progress.close(finished=False)
    assert {entry[1] for entry in written} == {25.0}


def test_a_server_that_takes_nothing_stops_nobody(monkeypatch: pytest.MonkeyPatch, written: Any) -> None:
    def refuse(*_data: Any, **_words: Any) -> None:
        raise ConnectionError("http://a:pw@host refused")

    monkeypatch.setattr(prefect_view, "create_progress_artifact", refuse)
    monkeypatch.setattr(prefect_view, "create_table_artifact", refuse)
    progress = Progress(make_spec(), period=0)
    progress.event(point(1))
    progress.close(finished=True)
    show_evaluations("tiny", [ROW])
    assert written == []


ROW = {
    "method": "sft/full",
    "n": 100,
    "accuracy": 0.075,
    "accuracy_low": 0.034,
    "accuracy_high": 0.137,
    "format_rate": 0.84,
    "mean_length": 25.46,
}


def test_an_evaluation_is_a_line_with_its_interval(written: list[tuple[Any, ...]]) -> None:
    assert evaluation_row("sft/full", ROW) == {
        "method": "sft/full",
        "n": 100,
        "accuracy %": 7.5,
        "95 % interval": "3.4-13.7",
        "format %": 84.0,
        "mean tokens": 25.5,
    }
    show_evaluations("tiny", [ROW, ROW])
    show_evaluations("tiny", [])
    assert [(kind, len(data), key) for kind, data, key, _ in written] == [("table", 2, "evaluations-tiny")]


def test_a_run_links_to_mlflow_or_says_how_to_see_it(written: list[tuple[Any, ...]]) -> None:
    link_to_mlflow("a1b2c3d4e5f6a7", "http://host:5000/#/experiments/1/runs/x")
    link_to_mlflow("", "")
    assert written[0][:3] == ("link", "http://host:5000/#/experiments/1/runs/x", "mlflow-a1b2c3d4e5f6")
    assert written[1][0] == "markdown"
    assert "`alignflow ui` shows it" in written[1][1]
    assert written[1][2] == "mlflow-study"


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"preset": "smoke", "overrides": {"seeds": [0, 1]}}, "grpo smoke: scratch, seed 0, 1"),
        ({"preset": "gsm8k-1.5b", "overrides": None}, "grpo gsm8k-1.5b: Qwen2.5-Math-1.5B, seed 0"),
        ({"preset": "smoke", "artifact": "3fa4"}, "grpo smoke: artifact 3fa4, seed 0"),
        ({"preset": "smok", "overrides": {}}, "smok"),
    ],
)
def test_a_flow_run_says_method_model_and_seed(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], name: str
) -> None:
    flow_run = SimpleNamespace(flow_name="grpo", parameters=parameters)
    monkeypatch.setattr(runner, "runtime", SimpleNamespace(flow_run=flow_run))
    assert runner.name_flow_run() == name
