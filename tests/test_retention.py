"""The store over time: damage found, leftovers and unused artifacts removed, checkpoints kept, runs extended."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import byte_tokenizer, tiny_model
from typer.testing import CliRunner

from alignment_core import manifest as manifest_module
from alignment_core.audit import verify
from alignment_core.config import SamplingConfig
from alignment_core.events import read_events
from alignment_core.journal import RunJournal, begin_run, dead_runs, past_runs, undisturbed
from alignment_core.manifest import Components, ManifestDraft, Producer
from alignment_core.models import save_model
from alignment_core.policy_gradient import train_grpo
from alignment_core.records import ArtifactRef, GradedResponse, Problem, write_jsonl
from alignment_core.retention import checkpoints_to_keep, collect
from alignment_core.stage import make_spec, run_stage
from alignment_core.stage_config import GRPOStage
from alignment_core.stage_run import StageRun
from alignment_core.stages import grpo as grpo_stage
from alignment_core.store import Store
from alignment_core.training_config import GRPOConfig, OptimizerConfig
from flows.cli import app


def publish(
    store: Store, name: str, parents: Sequence[ArtifactRef] = (), started: float = 0.0, files: Path | None = None
) -> ArtifactRef:
    """An artifact `demo/<key>` of one file, or of a folder's files."""
    source = store.root / ".work" / f"made-{name}"
    source.mkdir(parents=True)
    if files is not None:
        shutil.copytree(files, source, dirs_exist_ok=True)
    (source / "result.txt").write_text(name)
    components = Components(stage="demo", config={"name": name}, inputs={}, code={}, versions={})
    draft = ManifestDraft(
        stage="demo",
        key=components.key(),
        label=name,
        components=components,
        parents={f"input {number}": ref for number, ref in enumerate(parents)},
        producer=Producer(started=started, seconds=1.0, host="here"),
    )
    return store.publish(source, draft)


def study_run(store: Store, study: str, refs: Sequence[ArtifactRef], status: Any = "FINISHED") -> RunJournal:
    """A study run that reached some artifacts and ended."""
    journal = begin_run(
        store.root, study, f"study {study}", {"flow": "study", "preset": study, "overrides": {"a.b": 1}}
    )
    for ref in refs:
        journal.reached("demo", ref.stage, ref.key, "cached")
    journal.end(status)
    journal.release(shown=True)
    return journal


def names(store: Store) -> set[str]:
    return {manifest.label for manifest in store.manifests()}


# Verification


def test_a_touched_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    ref = publish(store, "one")
    hashed: list[str] = []
    real = manifest_module.file_sha256
    monkeypatch.setattr(manifest_module, "file_sha256", lambda path: hashed.append(path.name) or real(path))
    file = store.path(ref) / "result.txt"
    os.utime(file, (1, 1))
    for _ in range(3):
        assert store.lookup("demo", ref.key).ref == ref
    assert hashed == ["result.txt"]
    file.write_text("two")  # as long as before, and its time put back: only the change time tells
    os.utime(file, (1, 1))
    assert store.lookup("demo", ref.key).status == "damaged"
    assert sorted(path.name for path in store.path(ref).iterdir()) == ["manifest.json", "result.txt"]


def rot(folder: Path) -> None:
    """Other bytes, same size and time: what a lookup cannot see."""
    stat = (folder / "result.txt").stat()
    (folder / "result.txt").write_text("eno")
    os.utime(folder / "result.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    ("damage", "file", "problem"),
    [
        (rot, "result.txt", "content differs"),
        (lambda folder: (folder / "result.txt").unlink(), "result.txt", "missing"),
        (lambda folder: (folder / "result.txt").write_text("o"), "result.txt", "1 bytes, not 3"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json", "unreadable"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json", "missing"),
        (lambda folder: (folder / "stray").write_text(""), "stray", "not in the manifest"),
    ],
)
def test_verify_names_damage_and_remedy(tmp_path: Path, damage: Any, file: str, problem: str) -> None:
    store = Store(tmp_path / "data" / "store")
    ref, whole = publish(store, "one"), publish(store, "two")
    study_run(store, "tiny", [ref])
    damage(store.path(ref))
    found = dict(verify(store))
    assert found[f"demo/{whole.key}"] == []
    (finding,) = found[f"demo/{ref.key}"]
    assert (finding.file, problem in finding.problem) == (file, True)
    assert finding.remedy == "remove the file" or "`alignflow run tiny --set a.b=1` again" in finding.remedy
    if file == "result.txt":
        assert store.lookup("demo", ref.key).status == "damaged"  # so that the remedy works, whatever it was
    shown = CliRunner().invoke(app, ["artifacts", "verify", "--root", str(tmp_path)])
    assert (shown.exit_code, file in shown.output) == (1, True)
    assert CliRunner().invoke(app, ["artifacts", "verify", whole.key[:8], "--root", str(tmp_path)]).exit_code == 0
    assert CliRunner().invoke(app, ["artifacts", "verify", "zz", "--root", str(tmp_path)]).exit_code == 1


# Removal


def test_what_a_kept_run_reaches_stays_and_so_does_all_it_was_made_from(tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = publish(store, "data")
    model, other = publish(store, "model", [data]), publish(store, "other model", [data])
    report = publish(store, "report", [model])
    old = publish(store, "old report", [other], started=1.0)
    study_run(store, "tiny", [old])
    study_run(store, "tiny", [report])
    publish(store, "young", started=2e9 * 2)
    kept = {"data", "model", "report", "young"}
    items = collect(store, 0, dry_run=True)
    assert [(item.kind, item.key) for item in items] == [("artifact", old.key), ("artifact", other.key)]
    assert items[0].bytes == sum(path.stat().st_size for path in store.path(old).iterdir())
    assert names(store) == kept | {"other model", "old report"}
    assert collect(store, 30, dry_run=True) == []  # both study runs are of today
    assert collect(store, 0, dry_run=False) == items
    assert names(store) == kept
    assert store.lookup("demo", old.key).status == "deleted"
    assert collect(store, 0, dry_run=False) == []


def test_the_last_run_that_finished_counts_beside_a_last_one_that_failed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second, elsewhere = publish(store, "first"), publish(store, "second"), publish(store, "elsewhere")
    study_run(store, "tiny", [first])
    study_run(store, "tiny", [second], "FAILED")
    study_run(store, "gsm8k", [elsewhere])
    assert collect(store, 0, dry_run=True) == []
    study_run(store, "tiny", [second])
    assert [item.key for item in collect(store, 0, dry_run=True)] == [first.key]


def test_without_a_journal_nothing_is_called_unused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, "of an older version")
    assert collect(store, 0, dry_run=False) == []


def test_leftovers_of_kills_go_and_the_work_of_the_last_run_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    done = publish(store, "done")
    resumable = ArtifactRef(stage="demo", key="5" * 32, digest="")
    study_run(store, "tiny", [done, resumable], "FAILED")
    work = tmp_path / ".work"
    for key in (done.key, resumable.key, "a" * 32):
        (work / f"demo-{key}").mkdir()
        (work / f"demo-{key}" / "big").write_bytes(bytes(1000))
        os.utime(work / f"demo-{key}", (1, 1))
    (work / f"demo-{done.key}.error.txt").write_text("x")
    (tmp_path / "demo" / f"{'b' * 32}.tmp-1").mkdir()
    items = collect(store, 1, dry_run=False)
    assert sorted((item.kind, item.key) for item in items) == [
        ("error log", done.key),
        ("unfinished publication", "b" * 32),
        *sorted([("work folder", done.key), ("work folder", "a" * 32)]),
    ]
    assert sum(item.bytes for item in items) == 2001
    assert [path.name for path in work.iterdir()] == [f"demo-{resumable.key}"]
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [done.key]


def test_nothing_is_removed_while_a_study_runs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    journal = begin_run(store.root, "tiny", "study tiny")
    with pytest.raises(ValueError, match=rf"study tiny \(pid {os.getpid()} on .*wait until it has ended"):
        collect(store, 0, dry_run=True)
    journal.end("FINISHED")
    journal.release(shown=True)
    assert collect(store, 0, dry_run=True) == []


# The journal


def test_a_killed_run_is_told_from_one_under_way(tmp_path: Path) -> None:
    alive = begin_run(tmp_path, "tiny", "alive")
    code = (
        "import os, pathlib, sys; from alignment_core.journal import begin_run\n"
        "begin_run(pathlib.Path(sys.argv[1]), 'tiny', 'study tiny').reached('demo', 'demo', 'k', 'asked'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    (dead,) = dead_runs(tmp_path)
    assert [line.key for line in dead.reached] == ["k"]
    with dead.path.open("a") as file:
        file.write('{"kind":"reac')  # what a kill in the middle of a line leaves
    dead.note_closed()
    assert dead_runs(tmp_path) == []
    assert {run.began.name: run.ended and run.ended.status for run in past_runs(tmp_path)} == {
        "alive": None,
        "study tiny": "KILLED",
    }
    alive.release(shown=True)
    with undisturbed(tmp_path):
        pass


# Checkpoints of a stage under way


def test_last_and_best_checkpoint_stay(tmp_path: Path) -> None:
    run = StageRun(tmp_path)
    run.resume()
    kept = []
    for step, accuracy in enumerate([0.2, 0.6, None, 0.5, 0.6, 0.1], start=1):
        run.emit(step, {} if accuracy is None else {"eval/accuracy": accuracy})
        run.save_checkpoint(step, lambda folder: (folder / "weights").write_text(""))
        kept.append(sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()))
    run.close()
    # After step 3 the last validation is still that of step 2: the later of equals is the better one to go on from.
    assert kept == [[1], [2], [3], [3, 4], [5], [5, 6]]
    resumed = StageRun(tmp_path)
    assert resumed.resume() == 6
    resumed.close()
    assert checkpoints_to_keep([]) == set()


# Longer runs

TOKENIZER = byte_tokenizer()
GRPO = GRPOConfig(
    n_grpo_steps=4,
    rollout_batch_size=8,
    train_batch_size=8,
    group_size=4,
    validate_every=2,
    validation_problems=0,
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
)


def likes_low_letters(responses: Sequence[str], truths: Sequence[str]) -> list[GradedResponse]:
    good = [float(sum(ord(letter) < 100 for letter in text) * 2 > len(text)) for text in responses]
    return [GradedResponse(format_reward=1.0, answer_reward=value, reward=value) for value in good]


@pytest.fixture
def extend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the real stage on a random model and a reward it can learn; (name of the store, changes) -> outcome."""
    trained: list[int] = []

    def train(*arguments: Any) -> int:
        before = arguments[6].latest_checkpoint()
        trained.append(arguments[3].n_grpo_steps - (int(before.name) if before else 0))
        return train_grpo(*arguments[:5], likes_low_letters, *arguments[6:])

    monkeypatch.setattr(grpo_stage, "train_grpo", train)
    files = tmp_path / "inputs"
    save_model(tiny_model(TOKENIZER), TOKENIZER, files / "model")
    problems = [Problem(id=str(n), question="q", prompt=f"{n}+1=", ground_truth="x") for n in range(4)]
    for split in ("train", "dev"):
        write_jsonl(files / f"{split}.jsonl", problems)

    def run(place: str, **changes: Any) -> SimpleNamespace:
        store = Store(tmp_path / place)
        source = next((one.ref() for one in store.manifests() if one.label == "inputs"), None)
        source = source or publish(store, "inputs", files=files)
        config = GRPOStage(
            grpo=GRPOConfig.model_validate({**GRPO.model_dump(), **changes}),
            sampling=SamplingConfig(max_tokens=6, temperature=1.0),
            seed=3,
        )
        outcome = run_stage(store, make_spec("grpo", config, {"model": source, "problems": source}, "grpo/base"))
        return SimpleNamespace(folder=store.path(outcome.ref), ref=outcome.ref, how=outcome.how, steps=trained[-1])

    return run


def record(folder: Path) -> list[tuple[int, int | None, dict[str, float]]]:
    """Points without their times."""
    return [
        (
            event.step,
            event.total,
            {name: value for name, value in event.metrics.items() if not name.startswith(("time/", "memory/"))},
        )
        for event in read_events(folder)
        if event.kind == "point"
    ]


def test_four_steps_and_four_more_are_eight(extend: Any) -> None:
    straight = extend("straight", n_grpo_steps=8)
    short = extend("extended")
    longer = extend("extended", n_grpo_steps=8, keep_state=False)
    assert (straight.steps, short.steps, longer.steps, longer.how) == (8, 4, 4, "resumed")
    assert longer.ref == straight.ref  # same key, and the same bytes in every published file
    assert record(longer.folder) == record(straight.folder)
    states = longer.folder.parents[1] / ".states"
    assert [path.name for path in states.iterdir()] == [f"grpo-{short.ref.key}"]
    assert not list(short.folder.rglob("optimizer.safetensors"))  # no part of what is published
    first, last = (load_file(one.folder / "model" / "model.safetensors") for one in (short, straight))
    assert any(not torch.equal(first[name], last[name]) for name in first)  # it did learn in between
    further = extend("extended", n_grpo_steps=9)  # the longest with state, not the longest
    assert further.steps == 5
    store = Store(longer.folder.parents[1])
    assert {item.kind for item in collect(store, keep_days=30, dry_run=False)} <= {"artifact"}
    removed = collect(store, keep_days=30, dry_run=False, states=True)
    assert sorted(item.path for item in removed) == sorted(f".states/grpo-{run.ref.key}" for run in (short, further))
    assert not list(states.iterdir())


def test_a_damaged_state_is_not_gone_on_from(extend: Any) -> None:
    short = extend("store")
    optimizer = short.folder.parents[1] / ".states" / f"grpo-{short.ref.key}" / "optimizer.safetensors"
    content = bytearray(optimizer.read_bytes())
    content[-1] ^= 1
    optimizer.write_bytes(content)
    longer = extend("store", n_grpo_steps=5)
    assert (longer.steps, longer.how) == (5, "ran")
    said = [event.name for event in read_events(longer.folder) if event.kind == "say"]
    assert said[0].endswith("not its training state (optimizer.safetensors was changed): from step 0")


def test_without_its_state_a_run_is_not_extended_and_says_so(extend: Any) -> None:
    short = extend("store", keep_state=False)
    assert short.folder.parent.parent.joinpath("grpo", short.ref.key, "manifest.json").is_file()
    longer = extend("store", n_grpo_steps=5)
    assert (longer.steps, longer.how) == (5, "ran")
    said = [event.name for event in read_events(longer.folder) if event.kind == "say"]
    assert said[0].startswith("grpo/base has 4 of these steps, but not its training state (it was not kept")


def test_keeping_the_state_is_in_no_key_and_needs_a_constant_rate() -> None:
    plain, keeping = (
        GRPOStage(grpo=GRPO.model_copy(update={"keep_state": keep}), sampling=SamplingConfig(), seed=0)
        for keep in (False, True)
    )
    assert plain.key_settings() == keeping.key_settings()
    cosine = OptimizerConfig(schedule="cosine")
    assert [GRPOConfig(optimizer=one).keeps_state for one in (GRPO.optimizer, cosine)] == [True, False]
    with pytest.raises(ValueError, match=r"set grpo\.optimizer\.schedule to constant|Set grpo\.optimizer"):
        GRPOConfig(keep_state=True, optimizer=OptimizerConfig(schedule="cosine"))
