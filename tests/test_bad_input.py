"""What a person gets for a mistake: one paragraph with the cause and the remedy, and nothing that counts as done."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_model
from torch import nn

from alignment_core.checkpoint_folders import read_marker, seal
from alignment_core.checkpoints import LoopIdentity, resume, write_checkpoint
from alignment_core.config import Config, DataConfig
from alignment_core.manifest import Components
from alignment_core.models import load_tokenizer
from alignment_core.prompts import read_template
from alignment_core.stage import StageSpec, make_spec, run_stage
from alignment_core.stage_config import ImportModelStage, PrepareStage
from alignment_core.stage_run import StageRun
from alignment_core.store import Store
from flows.settings import load_config, parse_override
from tasks.roots import require_writable

ROOT = Path(__file__).parents[1]


def refused(action: Callable[[], object]) -> str:
    """The message of the ValueError an action ends in: one paragraph."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each test looks at the message
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


# Settings


def setting(*overrides: str) -> str:
    """What the smoke preset with overrides is refused for."""
    return refused(lambda: load_config("smoke", dict(parse_override(text) for text in overrides)))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("grpoo.group_size=8", "grpoo: no such setting; did you mean 'grpo'?"),
        ("grpo.n_grpo_stes=3", "grpo.n_grpo_stes: no such setting; did you mean 'grpo.n_grpo_steps'?"),
        ("expert_iteration.sft.epoch=1", "did you mean 'expert_iteration.sft.epochs'?"),
        ("model.scratch.hiden_size=3", "did you mean 'model.scratch.hidden_size'?"),
        ("GRPO.group_size=8", "GRPO: no such setting; did you mean 'grpo'?"),
        ("n_grpo_steps=3", "did you mean 'grpo.n_grpo_steps'?"),
        ("grpo.learning_rate=1e-5", "did you mean 'grpo.optimizer.learning_rate'"),
        ("grpo.n_grpo_steps=many", "grpo.n_grpo_steps should be a whole number, not 'many'"),
        ("grpo.n_grpo_steps=1.5", "grpo.n_grpo_steps should be a whole number, not 1.5"),
        ("sampling.temperature=hot", "sampling.temperature should be a number, not 'hot'"),
        ("seeds=3", "seeds should be a list, e.g. [1, 2], not 3"),
        ("examples.size=all", "examples.size should be a whole number or should be 'full', not 'all'"),
        ("data.train=mine.jsonl", "data.train would not be read: data.kind 'arithmetic' generates its problems"),
        ("examples.variant=raws", "should be 'raw', 'filtered' or 'distilled', not 'raws'"),
        ("grpo=3", "grpo should be a mapping of settings, not 3"),
        ("experiments=[{name: x}]", "experiments.0.method is missing"),
        ("grpo.group_size=7", "64 is not a multiple of grpo.group_size 7: take a rollout batch of 63"),
        ("grpo.group_size=100", "take a rollout batch of 100"),
        ("grpo.train_batch_size=48", "take a train batch that divides it"),
        ("model.source=owner/name", "with another source set it to null"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(override: str, words: str) -> None:
    assert words in setting(override)


def test_every_wrong_setting_is_told_at_once() -> None:
    message = setting("seed=x", "grpo.n_grpo_stes=3")
    assert "seed should be" in message
    assert "n_grpo_steps" in message


def test_an_unknown_preset_offers_the_nearest(tmp_path: Path) -> None:
    assert "did you mean 'smoke'?" in refused(lambda: load_config("smok"))
    assert "no preset file" in refused(lambda: load_config(str(tmp_path / "study.yaml")))
    assert "no preset file" in refused(lambda: load_config(str(tmp_path)))
    for name, content, words in [
        ("list.yaml", b"- 1", "not a YAML mapping"),
        ("latin.yaml", b"name: caf\xe9", "not UTF-8"),
        ("nameless.yaml", b"seed: 1", "name is missing"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert words in refused(partial(load_config, str(tmp_path / name)))


def test_a_template_needs_its_place_for_the_question(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Answer this.")
    assert "has no {question}: write it" in refused(lambda: read_template(str(tmp_path / "prompt.txt")))
    assert "give one of" in refused(lambda: read_template("reasonin"))


# Data: the stage that reads it, so that what is left behind is looked at too

GSM8K = [{"question": f"What is {n} + 1?", "answer": f"It is so. #### {n + 1}"} for n in range(6)]
TEST = [{"question": f"What is {n} + 100?", "answer": f"It is so. #### {n + 100}"} for n in range(3)]


def write_rows(path: Path, rows: list[Any]) -> str:
    """A file of rows; text stands for itself."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def prepare_spec(folder: Path, rows: list[Any] | None, **data: Any) -> StageSpec:
    """A prepare stage on a train file of these rows (None: there is no file)."""
    train = folder / "train.jsonl"
    if rows is not None:
        write_rows(train, rows)
    test = write_rows(folder / "test.jsonl", TEST)
    config = DataConfig(**{"kind": "gsm8k", "train": str(train), "test": test, "dev_size": 1, **data})
    return make_spec("prepare", PrepareStage(data=config, template="{question}", seed=0), {}, "prepare")


@pytest.mark.parametrize(
    ("rows", "data", "words"),
    [
        (None, {}, "train.jsonl': give an existing .jsonl or .json file"),
        ([*GSM8K[:2], '{"question": ', *GSM8K[2:]], {}, "train.jsonl, line 3: not valid JSON"),
        ([*GSM8K, "[1, 2]"], {}, "train.jsonl, line 7: not a JSON object but list"),
        ([], {}, "has no rows: give a file with at least one problem"),
        ([{**row, "id": "same"} for row in GSM8K], {}, "occurs twice, at "),
        ([{"query": "1?", "response": "1"}], {}, "no field `question` among ['query', 'response']: rename"),
        ([{"query": "1?", "reply": "1"}], {"kind": "jsonl"}, "unknown fields ['query', 'reply']: rename them to"),
        ([{"question": "1?", "answer": None}], {}, "line 1: field `answer` is null, text is wanted"),
        (GSM8K, {"dev_size": 6}, "data.dev_size 6 leaves no train problem of 6: lower it"),
        (GSM8K, {"split": "resplit", "resplit_sizes": (9, 1, 1)}, "want 11 problems, there are 9: lower them"),
        (GSM8K, {"test": None}, "needs data.test: give it"),
    ],
)
def test_bad_data_is_refused_and_leaves_nothing_that_counts(
    tmp_path: Path, rows: list[Any] | None, data: dict[str, Any], words: str
) -> None:
    store, spec = Store(tmp_path / "store"), prepare_spec(tmp_path, rows, **data)
    assert words in refused(lambda: run_stage(store, spec))
    assert store.lookup("prepare", spec.key).status == "missing"
    assert list(store.manifests()) == []


def test_once_the_file_is_repaired_the_same_stage_runs(tmp_path: Path) -> None:
    store, spec = Store(tmp_path / "store"), prepare_spec(tmp_path, [*GSM8K, "{"])
    refused(lambda: run_stage(store, spec))
    write_rows(tmp_path / "train.jsonl", GSM8K)
    assert run_stage(store, spec).how == "ran"


# Roots


def test_a_root_that_cannot_be_written_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert "Choose another folder with --root" in refused(lambda: require_writable(tmp_path / "file"))
    (tmp_path / "data").write_text("")
    assert str(tmp_path / "data" / "store") in refused(lambda: require_writable(tmp_path))

    def read_only(**_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)  # a mode would not stop the superuser
    assert "Permission denied" in refused(lambda: require_writable(tmp_path / "root"))


# Models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = byte_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def only_adapter(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")


def cut_off(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)


def sharded_without_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights (model.safetensors): copy"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickles"),
        (cut_off, "is not a whole safetensors file"),
        (sharded_without_shards, "model-00001-of-00002.safetensors are missing"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer (tokenizer.json): copy the tokenizer"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (only_adapter, "an adapter without its base model: merge the two"),
    ],
)
def test_an_incomplete_checkpoint_folder_does_not_become_an_artifact(
    tmp_path: Path, checkpoint: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    store, spec = Store(tmp_path / "store"), make_spec("import_model", ImportModelStage(source=str(folder)), {}, "base")
    assert words in refused(lambda: run_stage(store, spec))
    assert list(store.manifests()) == []


def test_a_whole_checkpoint_folder_is_taken(tmp_path: Path, checkpoint: Path) -> None:
    spec = make_spec("import_model", ImportModelStage(source=str(checkpoint)), {}, "base")
    assert run_stage(Store(tmp_path), spec).how == "ran"


def test_a_tokenizer_without_vocabulary_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    assert "has no tokenizer, or an empty one" in refused(lambda: load_tokenizer(tmp_path / "model"))


IDENTITY = LoopIdentity(loop="sft", seed=0, total=4, items=8)


def other_shape(work: Path) -> None:
    save_at_two(work, nn.Linear(2, 5), IDENTITY)


def other_names(work: Path) -> None:
    save_at_two(work, nn.Sequential(nn.Linear(2, 3)), IDENTITY)


def other_run(work: Path) -> None:
    save_at_two(work, nn.Linear(2, 3), LoopIdentity(loop="sft", seed=1, total=4, items=8))


def garbled(work: Path) -> None:
    """As a mistake of ours would write it; what a disk spoils later is found by `checkpoint_folders`."""
    save_at_two(work, nn.Linear(2, 3), IDENTITY)
    checkpoint = next(work.glob("checkpoints/[0-9]*"))
    (checkpoint / "model.safetensors").write_bytes(b"garbage")
    seal(checkpoint, read_marker(checkpoint))


def save_at_two(work: Path, model: nn.Module, identity: LoopIdentity) -> None:
    """A complete checkpoint of a model in a work folder."""
    run = StageRun(work)
    run.resume()
    optimizer = torch.optim.AdamW(model.parameters())
    run.save_checkpoint(2, lambda folder: write_checkpoint(folder, model, optimizer, 2, identity))
    run.close()


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (other_shape, "differ in weight, (5, 2) and (3, 2)"),
        (other_names, "the model differ in 0.bias"),
        (other_run, "is of another run"),
        (garbled, "cannot be read"),
    ],
)
def test_a_checkpoint_of_another_model_stops_the_stage_until_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Path], None], words: str
) -> None:
    def train(config: Config, inputs: object, output: Path, run: StageRun) -> None:
        model = nn.Linear(2, 3)
        step = resume(run, model, torch.optim.AdamW(model.parameters()), IDENTITY)
        (output / "result.txt").write_text(str(step))

    module = types.ModuleType("alignment_core.stages.demo")
    module.CONFIG, module.run = Config, train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "alignment_core.stages.demo", module)
    components = Components(stage="demo", config={}, inputs={}, code={}, versions={})
    key = components.key()
    spec = StageSpec(stage="demo", label="demo", config={}, inputs={}, components=components, key=key)
    store = Store(tmp_path)
    plant(tmp_path / ".work" / f"demo-{key}")
    message = refused(lambda: run_stage(store, spec))
    assert words in message
    assert message.endswith("remove that folder, and the stage starts anew")
    assert store.lookup("demo", key).status == "missing"
    shutil.rmtree(next((tmp_path / ".work").glob("*/checkpoints/*2")))
    assert run_stage(store, spec).how == "ran"


# The command


@pytest.fixture(scope="module")
def alignflow(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command with a home of its own."""
    home = tmp_path_factory.mktemp("home")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environment = {**clean, "HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "COLUMNS": "200"}
    command = [sys.executable, "-c", "from flows.cli import main; main()"]

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120
        )

    return call


def test_the_command_refuses_a_wrong_key_at_once(alignflow: Any, tmp_path: Path) -> None:
    done = alignflow("run", "smoke", "--root", str(tmp_path), "--set", "grpo.n_grpo_stes=3")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "alignflow: preset 'smoke': grpo.n_grpo_stes: no such setting; did you mean 'grpo.n_grpo_steps'?"
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_a_root_it_cannot_write_at_once(alignflow: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = alignflow("run", "smoke", "--root", str(tmp_path / "file"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"alignflow: cannot write under {tmp_path / 'file'}")
    assert "--root" in line


@pytest.mark.slow
def test_the_command_names_the_broken_line_and_leaves_no_artifact(alignflow: Any, tmp_path: Path) -> None:
    train, test = write_rows(tmp_path / "train.jsonl", [*GSM8K, "{"]), write_rows(tmp_path / "test.jsonl", TEST)
    data = f"data={{kind: gsm8k, arithmetic: null, train: '{train}', test: '{test}', dev_size: 1}}"
    done = alignflow("prepare", "smoke", "--root", str(tmp_path), "--set", data)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"alignflow: {train}, line 7: not valid JSON")
    assert "Traceback" not in done.stdout + done.stderr
    assert list((tmp_path / "data" / "store").rglob("manifest.json")) == []
