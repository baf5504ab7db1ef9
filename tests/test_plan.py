"""What a study would compute, told before anything is."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from planned_store import by_status, make_study, plan

from alignment_core import planning
from alignment_core.events import Event
from alignment_core.model_size import ModelSize, checkpoint_size, count_parameters
from alignment_core.store import Store
from flows import plan as room

ROOT = Path(__file__).parents[1]
QWEN_1_5B = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def test_an_empty_root_runs_everything_and_is_left_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "new"
    shown = by_status(plan(root))
    assert len(shown["run"]) >= 30
    assert not shown["cached"] | shown["unknown"]
    assert not root.exists()


def test_a_finished_study_is_all_cached(store: Store, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    again = plan(tmp_path)
    assert by_status(again)["cached"] == {stage.label for stage in again.stages}
    assert {stage.reason for stage in again.stages} == {"same key"}
    assert again.weight_bytes() == again.checkpoint_bytes() == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_setting_runs_its_stage_and_puts_what_follows_in_doubt(store: Store, tmp_path: Path) -> None:
    changed = plan(tmp_path, grpo__optimizer__learning_rate=1e-4)
    name = "grpo/base/seed0"
    shown = by_status(changed)
    assert shown["run"] == {name, "report"}
    assert shown["unknown"] == {f"{name}: sample test", f"{name}: grade test", "analyze"}
    stages = {stage.label: stage for stage in changed.stages}
    assert stages[name].reason == "config changed: grpo.optimizer.learning_rate 0.0002 -> 0.0001"
    assert stages[name].key is not None
    assert stages[f"{name}: sample test"].reason == f"depends on {name}"
    assert stages[f"{name}: sample test"].key is None


def test_a_stage_behind_a_miss_runs_for_certain_if_it_changed_itself(store: Store, tmp_path: Path) -> None:
    changed = plan(tmp_path, data__arithmetic__train=300, grpo__optimizer__learning_rate=1e-4)
    stages = {stage.label: stage for stage in changed.stages}
    assert stages["prepare"].reason == "config changed: data.arithmetic.train 256 -> 300"
    assert stages["grpo/base/seed0"].status == "run"
    assert stages["grpo/base/seed0"].reason == (
        "config changed: grpo.optimizer.learning_rate 0.0002 -> 0.0001; depends on base model, prepare"
    )
    # Its traces are unknown, their number too; that alone makes nothing certain.
    assert stages["filter traces"].status == "unknown"
    assert stages["sft/full/filtered/seed0"].status == "unknown"
    assert stages["analyze"].status == "unknown"


def test_an_older_artifact_that_would_fit_again_keeps_it_in_doubt(store: Store, tmp_path: Path) -> None:
    make_study(tmp_path, grpo__optimizer__learning_rate=1e-4)
    assert by_status(plan(tmp_path, data__arithmetic__train=300))["run"] == {"prepare", "base model", "report"}


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: (folder / "result.txt").write_text("x"), "result.txt has 1 bytes"),
        (lambda folder: (folder / "result.txt").unlink(), "result.txt is missing"),
        (lambda folder: folder.rename(folder.parents[3] / "elsewhere"), "was deleted"),
    ],
)
def test_a_harmed_artifact_runs_and_says_what_is_wrong(store: Store, tmp_path: Path, harm, reason: str) -> None:  # type: ignore[no-untyped-def]
    harm(next((store.root / "filter").iterdir()))
    shown = {stage.label: stage for stage in plan(tmp_path).stages}
    assert shown["filter traces"].status == "run"
    assert reason in shown["filter traces"].reason


def test_a_stage_under_way_says_from_where_it_goes_on(store: Store, tmp_path: Path) -> None:
    changed = {"grpo__optimizer__learning_rate": 1e-4}
    key = next(stage.key for stage in plan(tmp_path, **changed).stages if stage.stage == "grpo")
    checkpoint = store.root / ".work" / f"grpo-{key}" / "checkpoints" / "00000120"
    checkpoint.mkdir(parents=True)
    (checkpoint / "complete.json").write_text('{"step": 120, "event_bytes": 0}')
    shown = {stage.label: stage.reason for stage in plan(tmp_path, **changed).stages}
    assert shown["grpo/base/seed0"].endswith("; goes on from step 120")


@pytest.mark.parametrize("name", ["prepare", "evaluation", "sft", "expert_iteration", "grpo", "analyze", "report"])
def test_every_flow_has_a_plan(store: Store, tmp_path: Path, name: str) -> None:
    flow = getattr(import_module(f"flows.{name}"), name)
    whole = {stage.label for stage in plan(tmp_path).stages}
    shown = by_status(plan(tmp_path, flow=flow))
    assert shown["cached"]
    assert shown["cached"] <= whole
    assert not shown["run"] | shown["unknown"]


def test_parameters_are_counted_by_hand() -> None:
    """V*H + L*((H*H + H) + 2*(H*k + k) + H*H + 3*H*I + 2*H) + H with V=10, H=8, k=4, I=6, L=2."""
    shape = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    assert count_parameters({**shape, **heads, "model_type": "qwen2"}) == 80 + 2 * (72 + 72 + 64 + 144 + 16) + 8
    assert count_parameters({**shape, **heads, "model_type": "llama"}) == 80 + 2 * (64 + 64 + 64 + 144 + 16) + 8
    assert count_parameters(QWEN_1_5B) == 1_543_714_304


@pytest.mark.parametrize(
    ("name", "parameters"), [("Org/Model-1.5B-Base", 1_500_000_000), ("org/tiny-350M", 350_000_000), ("org/gpt", None)]
)
def test_a_hub_model_that_is_not_here_is_sized_by_its_name(
    name: str, parameters: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = checkpoint_size(name)
    assert (found.parameters if found else None) == parameters


def test_the_forecast_counts_weights_once_and_checkpoints_of_one_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gsm8k-1.5b: 4 bytes per parameter published, 12 in a checkpoint, of which three may lie side by side."""
    whole = plan(tmp_path, "gsm8k-1.5b")
    trained = [stage for stage in whole.stages if stage.stage in {"sft", "grpo"}]
    assert trained == [stage for stage in whole.stages if stage.trains and stage.publishes]
    sizes = {stage.model.parameters for stage in trained if stage.model}
    (size,) = sizes
    assert 1.5e9 <= size <= 1.55e9
    assert whole.weight_bytes() == len(trained) * 4 * size
    assert whole.checkpoint_bytes() == 3 * 12 * size
    monkeypatch.setattr(room, "free_bytes", lambda _root: 100_000_000_000)
    lines = list(room.forecast_disk(whole, tmp_path))
    assert "NOT ENOUGH" in lines[-1]
    monkeypatch.setattr(room, "free_bytes", lambda _root: 10**15)
    assert not any("NOT ENOUGH" in line for line in room.forecast_disk(whole, tmp_path))


def test_the_forecast_of_time_counts_the_dev_problems_of_the_settings(tmp_path: Path) -> None:
    """gsm8k-1.5b: 200 steps of 256 rollouts, and 21 points of 1,024 dev problems in batches of 256."""
    (run,) = (one for one in plan(tmp_path, "gsm8k-1.5b").stages if one.label == "grpo/base/seed0")
    assert run.forecast is not None
    assert run.model is not None
    decoding = (200 + 21 * 4) * 1024 * 0.006
    passes = 6 * run.model.parameters * 550 * 200 * 256 / (0.4 * 990e12)
    assert run.forecast.seconds == pytest.approx(decoding + passes)


def test_a_measured_forecast_reads_what_updates_took_and_the_rows_of_the_splits(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """smoke: 4 steps of 64 rollouts and 3 points of 48 dev problems, of which 10 are there; 2 s, 0.5 s of updates."""
    for line in store.ledger():
        folder = store.root / line["stage"] / line["key"]
        if line["stage"] == "pretrain":
            (folder / "model").mkdir()
        if line["stage"] == "prepare":
            for split in ("train", "dev", "test"):
                (folder / f"{split}.jsonl").write_text("{}\n" * 10)
        if line["stage"] == "grpo":
            (folder / "record").mkdir()
            points = [Event(kind="point", step=step, time=0.0, metrics={"time/update": 0.125}) for step in range(1, 5)]
            lines = [Event(kind="say", step=0, time=0.0, name="hello"), *points]
            (folder / "record" / "events.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in lines))
    monkeypatch.setattr(planning, "checkpoint_size", lambda _folder: ModelSize(parameters=1_000, source="here"))
    swept = {"grpo__epochs_per_rollout_batch": 4, "grpo__loss_type": "grpo_clip", "grpo__validate_every": 1}
    (run,) = (one for one in plan(tmp_path, **swept).stages if one.label == "grpo/base/seed0")
    assert run.forecast is not None
    assert run.forecast.source == "measured"
    assert run.forecast.seconds == pytest.approx(4 * 0.5 + 1.5 * (256 + 5 * 10) / (256 + 3 * 10))


def test_a_run_that_its_budget_ended_counts_by_the_steps_it_took(tmp_path: Path) -> None:
    folder = tmp_path / "record"
    folder.mkdir()
    points = [Event(kind="point", step=step, time=0.0, metrics={"train/loss": 1.0}) for step in (1, 2, 3)]
    (folder / "events.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in points))
    asked = {"grpo": {"n_grpo_steps": 1000, "time_budget_hours": 0.5, "group_size": 8}, "seed": 0}
    assert planning._as_done(asked, tmp_path) == {**asked, "grpo": {**asked["grpo"], "n_grpo_steps": 3}}
    free = {"grpo": {"n_grpo_steps": 1000, "time_budget_hours": None}}
    assert planning._as_done(free, tmp_path) is free
    assert planning._as_done(asked, tmp_path / "elsewhere") is asked


def test_a_model_of_unknown_size_is_said_to_be_left_out(tmp_path: Path) -> None:
    overrides = {"model__source": "owner/name", "model__scratch": None}
    lines = list(room.forecast_disk(plan(tmp_path / "root", **overrides), tmp_path))
    assert any("grpo/base/seed0 not counted" in line for line in lines)


def test_a_plan_refuses_local_input_that_a_run_would_refuse(tmp_path: Path) -> None:
    rows, blank, empty = tmp_path / "rows.jsonl", tmp_path / "blank.jsonl", tmp_path / "model"
    blank.write_text("\n\n")
    rows.write_text('{"question": "1+1", "answer": "2"}\n{"question": \n')
    empty.mkdir()
    base = {"model__source": "owner/name", "model__scratch": None}
    jsonl = {**base, "data__kind": "jsonl", "data__arithmetic": None, "data__test": str(rows)}
    for overrides, told in (
        ({**jsonl, "data__train": str(tmp_path / "none.jsonl")}, "no file"),
        ({**jsonl, "data__train": str(rows)}, "rows.jsonl, line 2: not valid JSON"),
        ({**jsonl, "data__train": str(blank)}, r"blank.jsonl \(train\) has no rows"),
        ({**base, "model__source": str(empty)}, "has no config.json"),
    ):
        with pytest.raises(ValueError, match=told):
            plan(tmp_path / "root", **overrides)


@pytest.mark.parametrize("preset", ["smoke", "smok"])
def test_the_command_plans_without_torch_or_a_server(store: Store, tmp_path: Path, preset: str) -> None:
    """On a study that is finished but for one setting; an unknown preset is an error, and only that exits non-zero."""
    code = "from flows.cli import main; main()"
    arguments = ["run", preset, "--plan", "--root", str(tmp_path), "--set", "grpo.optimizer.learning_rate=1e-4"]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=120,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert not {name.split(".")[0] for name in imported} & {"torch", "transformers", "mlflow", "datasets", "uvicorn"}
    assert not (tmp_path / "prefect" / "prefect.db").exists()
    if preset == "smok":
        assert done.returncode == 1
        assert "did you mean 'smoke'?" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    name = "grpo/base/seed0"
    assert any(line.startswith(f" would run  {name}  ") and "learning_rate 0.0002 -> 0.0001" in line for line in lines)
    assert any(line.startswith(f"   may run  {name}: sample test  -  depends on {name}") for line in lines)
    assert "2 would run, 3 may run" in done.stdout
    assert "GB free of" in done.stdout
