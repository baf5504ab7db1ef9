"""The shared store, on a folder and on S3: uploads whole or not there, downloads verified, the bound of the cache."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from planned_store import make_study, plan
from shared_hosts import ENVIRONMENT, components, publish, remote_manifest, s3_server, shared
from typer.testing import CliRunner

from alignment_core import remote as remote_module
from alignment_core.attempts import Superseded
from alignment_core.cache_bound import shrink
from alignment_core.journal import begin_run
from alignment_core.locks import artifacts_in_use
from alignment_core.manifest import Manifest, canonical_json, content_digest
from alignment_core.remote import RemoteFolder, StoreRefused, StoreUnreachable, patiently
from alignment_core.shared_checkpoints import (
    CheckpointUploader,
    SharedCheckpoint,
    fetch_further,
    shared_checkpoints,
)
from alignment_core.shared_manifests import content_folder
from alignment_core.shared_upkeep import sweep, verify_shared
from alignment_core.sharing import setting
from alignment_core.stage_run import StageRun
from alignment_core.store import Store
from alignment_core.store_access import open_store
from flows.cli import app

KEY = components().key()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(params=["posix", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty shared store."""
    if request.param == "posix":
        return str(tmp_path / "shared")
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": request.getfixturevalue("s3")}.items():
        monkeypatch.setenv(name, value)
    return f"s3://alignflow/{tmp_path.name}"


def files_below(folder: Path) -> set[str]:
    """Files of artifacts, without what the store keeps for itself."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }


# Publishing and bringing


def test_what_one_root_published_another_finds_without_a_download_and_then_has(url: str, tmp_path: Path) -> None:
    one, two = shared(url, tmp_path / "one"), shared(url, tmp_path / "two")
    assert two.lookup("demo", KEY).status == "missing"
    ref = publish(one)
    found = two.lookup("demo", KEY)
    assert (found.status, found.ref, found.reason) == ("hit", ref, "in the shared store")
    assert two.manifest("demo", KEY) == one.manifest("demo", KEY)
    assert two.find(KEY[:8]).ref() == ref
    assert files_below(two.root) == set()
    folder = two.path(ref)
    assert files_below(two.root) == files_below(one.root)
    assert (folder / "model" / "weights.bin").read_text() == "hello"
    assert Store(two.root).lookup("demo", KEY).ref == ref  # whole by itself, times included
    assert not (two.root / ".verified").exists()
    assert not list((two.root / ".incoming").iterdir())
    assert (folder / "manifest.json").read_bytes() == (one.folder(ref) / "manifest.json").read_bytes()


def test_the_record_comes_without_the_weights(url: str, tmp_path: Path) -> None:
    one, two = shared(url, tmp_path / "one"), shared(url, tmp_path / "two")
    ref = publish(one, record="{}\n")
    assert one.record(ref) == one.folder(ref)
    folder = two.record(ref)
    assert files_below(folder) == {"record/events.jsonl", "result.json"}
    assert (folder / "record" / "events.jsonl").read_text() == "{}\n"
    assert files_below(two.root) == set()


def test_a_hit_that_is_known_to_be_shared_asks_nobody(tmp_path: Path) -> None:
    one = shared(str(tmp_path / "shared"), tmp_path / "one")
    ref = publish(one)
    (tmp_path / "shared").rename(tmp_path / "away")
    assert one.lookup("demo", KEY).ref == ref
    assert one.path(ref).is_dir()


def test_an_upload_that_is_cut_off_anywhere_is_not_there(url: str, tmp_path: Path) -> None:
    one, two = shared(url, tmp_path / "one"), shared(url, tmp_path / "two")
    for files in range(4):  # three files, and the manifest
        left = iter(range(files))

        def cut(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Superseded("another one has it")

        with pytest.raises(Superseded):
            publish(one, text=f"try {files}", guard=cut)
        assert two.lookup("demo", KEY).status == "missing"
        assert one.shared is not None
        folders = one.shared.remote.children(f"demo/{KEY}")
        assert "manifest.json" not in folders
        assert sum(len(one.shared.remote.sizes(f"demo/{KEY}/{folder}")) for folder in folders) == sum(range(files + 1))
    ref = one.lookup("demo", KEY).ref
    assert ref is not None  # it is whole where it was computed, and the next run that asks for it uploads it
    assert one.shared.share_if_absent(ref) == "one is shared now"
    assert two.lookup("demo", KEY).ref == ref
    assert one.shared.share_if_absent(ref) == ""


def test_of_two_contents_of_one_key_the_first_stays_and_counts_for_all(url: str, tmp_path: Path) -> None:
    alone = Store(tmp_path / "two")
    late = publish(alone, text="late")  # before there was a shared store
    one, two = shared(url, tmp_path / "one"), shared(url, tmp_path / "two")
    first = publish(one, text="first")
    assert first.digest != late.digest
    assert two.lookup("demo", KEY).ref == first
    assert (two.path(first) / "model" / "weights.bin").read_text() == "first"
    assert two.lookup("demo", KEY).ref == first
    assert publish(two, text="late") == first
    assert two.shared is not None
    assert remote_manifest(two.shared.remote, "demo", KEY).digest == first.digest


def test_a_late_upload_of_the_same_content_with_another_record_spoils_nothing(url: str, tmp_path: Path) -> None:
    one, two, three = (shared(url, tmp_path / name) for name in ("one", "two", "three"))
    asked: list[int] = []

    def held_up_before_the_manifest() -> None:
        asked.append(len(asked))
        if len(asked) == 4:  # three files are there
            publish(two, record="two")

    ref = publish(one, record="one", guard=held_up_before_the_manifest)
    assert (three.path(ref) / "record" / "events.jsonl").read_text() == "two"
    assert three.lookup("demo", KEY).ref == ref


def test_an_artifact_damaged_here_is_taken_from_there(url: str, tmp_path: Path) -> None:
    one, two = shared(url, tmp_path / "one"), shared(url, tmp_path / "two")
    ref = publish(one)
    (two.path(ref) / "model" / "weights.bin").write_text("jello")
    found = two.lookup("demo", KEY)
    assert found.ref == ref
    assert "was edited; the shared store has it" in found.reason
    assert (two.path(ref) / "model" / "weights.bin").read_text() == "hello"


# What is not to be trusted


def tamper(store: Store, change: Callable[[dict[str, Any]], None], digest: bool = True) -> Manifest:
    """Rewrite the manifest in the shared store; digest: with a digest that fits its files."""
    assert store.shared is not None
    remote = store.shared.remote
    content = json.loads(remote.read(f"demo/{KEY}/manifest.json"))
    change(content)
    if digest:
        files = Manifest.model_validate(content).files
        content["digest"] = content_digest(files)
    remote.write(f"demo/{KEY}/manifest.json", json.dumps(content).encode())
    return Manifest.model_validate(content)


EVIL = {"size": 5, "sha256": "0" * 64, "mtime_ns": 0}


@pytest.mark.parametrize(
    ("change", "digest", "told"),
    [
        (lambda content: content["files"].update({"../../evil": EVIL}), True, "lies outside the artifact"),
        (lambda content: content["files"].update({"/tmp/evil": EVIL}), True, "lies outside the artifact"),
        (lambda content: content["files"].update({"a/../b": EVIL}), True, "lies outside the artifact"),
        (lambda content: content["files"].update({"a//b": EVIL}), True, "no name of a file"),
        (lambda content: content["files"].update({"": EVIL}), True, "no name of a file"),
        (lambda content: content["files"].update({"manifest.json": EVIL}), True, "no name of a file"),
        (lambda content: content["files"].update({"result.json/x": EVIL}), True, "another file of the artifact"),
        (lambda content: content.update(digest="0" * 64), False, "its digest is not that of the files"),
        (lambda content: content.update(key="f" * 32), True, "it is of demo/ffff"),
        (lambda content: content.update(stage="other"), True, "it is of other/"),
        (lambda content: content["files"].update({"more": EVIL}), True, "is missing"),
    ],
)
def test_a_manifest_that_was_tampered_with_is_refused(
    url: str, tmp_path: Path, change: Callable[[dict[str, Any]], None], digest: bool, told: str
) -> None:
    one, two = shared(url, tmp_path / "one"), shared(url, tmp_path / "two")
    ref = publish(one)
    manifest = tamper(one, change, digest)
    found = two.lookup("demo", KEY)
    assert (found.status, found.ref) == ("damaged", None)
    assert told in found.reason
    with pytest.raises((ValueError, FileNotFoundError)):
        two.path(ref.model_copy(update={"digest": manifest.digest}))
    assert files_below(two.root) == set()
    assert not (tmp_path / "evil").exists()


def test_content_that_is_not_what_the_manifest_says_is_never_used_and_is_computed_anew(
    url: str, tmp_path: Path
) -> None:
    one, two, three = (shared(url, tmp_path / name) for name in ("one", "two", "three"))
    ref = publish(one)
    assert one.shared is not None
    manifest = one.manifest("demo", KEY)
    spoiled = f"demo/{KEY}/{content_folder(manifest)}/model/weights.bin"
    one.shared.remote.write(spoiled, b"jello")
    assert two.lookup("demo", KEY).ref == ref  # its size is right
    with pytest.raises(ValueError, match="is not what its manifest says"):
        two.path(ref)
    assert files_below(two.root) == set()
    found = two.lookup("demo", KEY)
    assert (found.status, "is damaged" in found.reason) == ("damaged", True)
    assert publish(two) == ref  # computed anew
    assert (three.path(ref) / "model" / "weights.bin").read_text() == "hello"


def test_a_symbolic_link_in_the_shared_store_is_not_followed(tmp_path: Path) -> None:
    one, two = shared(str(tmp_path / "shared"), tmp_path / "one"), shared(str(tmp_path / "shared"), tmp_path / "two")
    ref = publish(one)
    (tmp_path / "secret").write_text("hello")  # the very content that the manifest promises
    (weights,) = (tmp_path / "shared").rglob("weights.bin")
    weights.unlink()
    weights.symlink_to(tmp_path / "secret")
    assert two.lookup("demo", KEY).status == "damaged"
    with pytest.raises(StoreRefused, match="symbolic link"):
        two.path(ref)
    weights.unlink()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_text("hello")
    weights.parent.rmdir()
    weights.parent.symlink_to(tmp_path / "model")
    assert two.lookup("demo", KEY).status == "damaged"
    with pytest.raises(StoreRefused, match="symbolic link"):
        two.path(ref)
    assert files_below(two.root) == set()


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "a/../../x", "a\0b"])
def test_no_name_leaves_the_folder(url: str, name: str) -> None:
    remote = RemoteFolder(url)
    for action in (remote.read, remote.sizes, remote.remove, lambda name: remote.write(name, b"")):
        with pytest.raises(ValueError, match="lies outside"):
            action(name)


# Trouble


def test_trouble_is_told_with_its_remedy_and_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: str
) -> None:
    with pytest.raises(StoreRefused, match=r"no place that fsspec knows .* give a folder, or a URL"):
        RemoteFolder("nonsense://user:hunter2@place")
    with pytest.raises(StoreRefused) as caught:
        RemoteFolder("gs://user:hunter2@bucket/folder")  # its package is not among those of the tests
    assert "pip install gcsfs" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(StoreUnreachable, match=r"ftp://\*\*\*@127.0.0.1:9/x cannot be reached"):
        RemoteFolder("ftp://user:hunter2@127.0.0.1:9/x")  # a protocol that connects at once, to where nobody listens
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": s3}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreUnreachable, match="make its bucket or folder"):
        RemoteFolder("s3://no-such-bucket/x").write("a", b"1")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnreachable):
        RemoteFolder(str(tmp_path / "file" / "below"))


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreUnreachable, match="cannot be reached"):
        RemoteFolder("s3://alignflow/x").read("a")


def test_a_store_without_exclusive_create_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = RemoteFolder("memory://somewhere")
    monkeypatch.setattr(remote_module, "EXCLUSIVE", {"s3"})
    with pytest.raises(StoreRefused, match="has no exclusive create"):
        remote.create("a", b"1")


def test_patience_tries_again_tells_once_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(remote_module.time, "sleep", sleep)
    monkeypatch.setattr(remote_module.time, "monotonic", lambda: clock[0])
    told: list[str] = []
    calls = iter([StoreUnreachable("away"), StoreUnreachable("still away")])

    def action() -> str:
        for error in calls:
            raise error
        return "there"

    assert patiently(action, 10.0, told.append) == "there"
    assert (told, slept) == (["away"], [0.5, 1.0])

    def never() -> None:
        raise StoreUnreachable("away")

    with pytest.raises(StoreUnreachable):
        patiently(never, 60.0)
    assert clock[0] == 61.5
    with pytest.raises(Superseded):
        patiently(lambda: (_ for _ in ()).throw(Superseded("no")), 60.0)


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_setting_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ALIGNFLOW_UPLOAD_SECONDS", value)
    with pytest.raises(ValueError, match="ALIGNFLOW_UPLOAD_SECONDS"):
        setting("ALIGNFLOW_UPLOAD_SECONDS")


def test_a_publication_waits_for_a_store_that_comes_back(tmp_path: Path) -> None:
    one, two = shared(str(tmp_path / "shared"), tmp_path / "one"), shared(str(tmp_path / "shared"), tmp_path / "two")
    (tmp_path / "shared").rename(tmp_path / "away")
    timer = threading.Timer(1.0, lambda: (tmp_path / "away").rename(tmp_path / "shared"))
    timer.start()
    ref = publish(one)
    timer.join()
    assert two.lookup("demo", KEY).ref == ref
    assert not (tmp_path / "away").exists()


def test_what_only_the_shared_store_can_tell_is_an_error_while_it_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNFLOW_STORE_PATIENCE", "0")
    one = shared(str(tmp_path / "shared"), tmp_path / "one")
    (tmp_path / "shared").rename(tmp_path / "away")
    with pytest.raises(StoreUnreachable):
        one.lookup("demo", KEY)
    with pytest.raises(StoreUnreachable, match="finished and whole in"):
        publish(one)
    assert one.lookup("demo", KEY).ref is not None
    assert one.shared is not None
    for write in (one.shared.remote.write, one.shared.remote.create):
        with pytest.raises(StoreUnreachable, match="is not there"):
            write("a/b", b"")
    assert not (tmp_path / "shared").exists()  # nobody fills the place that the mount left empty


def test_open_store_reads_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNFLOW_STORE", raising=False)
    assert open_store(tmp_path / "root").shared is None
    monkeypatch.setenv("ALIGNFLOW_STORE", str(tmp_path / "shared"))
    monkeypatch.setenv("ALIGNFLOW_CACHE_GB", "0.5")
    store = open_store(tmp_path / "root")
    assert store.root == tmp_path / "root" / "data" / "store"
    assert store.shared is not None
    assert store.shared.cache_bytes == 0.5e9


# The bound


def bounded(tmp_path: Path, artifacts: int = 3) -> Store:
    """A root whose bound is below what it holds, all of it shared, the first used longest ago."""
    store = shared(str(tmp_path / "shared"), tmp_path / "one")
    assert store.shared is not None
    for index in range(artifacts):
        ref = publish(store, f"name {index}", "x" * 1000, record="r")
        note = store.shared.note_path(ref.stage, ref.key)
        os.utime(note, (time.time() - 10_000 + index,) * 2)
    return store


def labels(store: Store) -> set[str]:
    return {manifest.label for manifest in store.manifests()}


def test_the_least_recently_used_goes_first_and_comes_back(tmp_path: Path) -> None:
    store = bounded(tmp_path)
    assert store.shared is not None
    store.shared.cache_bytes = 2500
    assert [one.label for one in shrink(store.shared)] == ["name 0"]
    assert labels(store) == {"name 1", "name 2"}
    key = components("name 0").key()
    ref = store.lookup("demo", key).ref
    assert ref is not None
    assert (store.path(ref) / "model" / "weights.bin").read_text() == "x" * 1000
    assert labels(store) == {"name 0", "name 2"}  # and another went


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    store = bounded(tmp_path, 4)
    assert store.shared is not None
    store.shared.cache_bytes = 0
    refs = [manifest.ref() for manifest in store.manifests()]
    store.lookup(refs[0].stage, refs[0].key)  # just now
    journal = begin_run(store.root, "study", "study")
    journal.reached("label", refs[1].stage, refs[1].key, "cached")
    with artifacts_in_use(store.root, [refs[2]]):
        assert [one.label for one in shrink(store.shared)] == ["name 3"]
    journal.end("FINISHED")
    journal.release(True)
    assert {one.label for one in shrink(store.shared)} == {"name 1", "name 2"}


@pytest.mark.parametrize("spoil", ["away", "removed", "cut short"])
def test_what_the_shared_store_has_not_whole_stays(tmp_path: Path, spoil: str) -> None:
    store = bounded(tmp_path, 1)
    assert store.shared is not None
    store.shared.cache_bytes = 0
    if spoil == "away":
        (tmp_path / "shared").rename(tmp_path / "away")
    if spoil == "removed":
        shutil.rmtree(tmp_path / "shared" / "demo")
    if spoil == "cut short":
        next((tmp_path / "shared").rglob("weights.bin")).write_text("x")
    assert shrink(store.shared) == []
    assert labels(store) == {"name 0"}


def test_what_was_never_shared_stays(tmp_path: Path) -> None:
    publish(Store(tmp_path / "one"))
    store = shared(str(tmp_path / "shared"), tmp_path / "one", cache_bytes=0)
    assert store.shared is not None
    assert shrink(store.shared) == []


# Checkpoints on their way


class Held:
    """An attempt that holds its stage, or does not."""

    def __init__(self, number: int = 1) -> None:
        self.number, self.name = number, "demo-k"
        self.checks_left = 1000

    def check(self) -> None:
        self.checks_left -= 1
        if self.checks_left < 0:
            raise Superseded("another one has it")


def save(run: StageRun, step: int, accuracy: float | None = None) -> Path:
    """Emit a point, and save a checkpoint that holds the step."""
    run.emit(step, {"train/loss": 1.0 / step} | ({} if accuracy is None else {"eval/accuracy": accuracy}))
    run.save_checkpoint(step, lambda folder: (folder / "count.txt").write_text(str(step)) and None)
    latest = run.latest_checkpoint()
    assert latest is not None
    return latest


def begun(folder: Path) -> StageRun:
    run = StageRun(folder, checkpoint_seconds=0.0)
    assert run.resume() is None
    return run


def events(folder: Path) -> Path:
    return folder / "output" / "record" / "events.jsonl"


def test_a_checkpoint_comes_with_the_record_that_it_covers(url: str, tmp_path: Path) -> None:
    remote, work = RemoteFolder(url), tmp_path / "work"
    run = begun(work)
    uploader = CheckpointUploader(remote, Held(), work / "upload", period=0.0)  # type: ignore[arg-type]
    uploader.offer(save(run, 3), events(work))
    run.emit(4, {"train/loss": 0.1})  # later than the checkpoint
    assert uploader.flush(30)
    uploader.stop(10)
    other = tmp_path / "other"
    stale = begun(other)
    save(stale, 2)
    stale.emit(3, {"train/loss": 9.0})
    stale.close()
    assert fetch_further(remote, "demo-k", other, 3) is None
    assert fetch_further(remote, "demo-k", other, 2) == 3
    run = StageRun(other)
    assert run.resume() == 3
    latest = run.latest_checkpoint()
    assert latest is not None
    assert (latest / "count.txt").read_text() == "3"
    run.close()
    steps = [json.loads(line)["step"] for line in events(other).read_text().splitlines()]
    assert steps == [3]
    assert not (other / "fetched").exists()


def test_the_newest_and_the_best_are_kept_of_this_attempt_and_those_before(url: str, tmp_path: Path) -> None:
    remote = RemoteFolder(url)
    for number, steps in ((1, {1: 0.5, 2: 0.1}), (2, {3: 0.9, 4: 0.2, 5: 0.3})):
        work = tmp_path / str(number)
        run = begun(work)
        uploader = CheckpointUploader(remote, Held(number), work / "upload", period=0.0)  # type: ignore[arg-type]
        for step, accuracy in steps.items():
            uploader.offer(save(run, step, accuracy), events(work))
            assert uploader.flush(30)
        uploader.stop(10)
        run.close()
        kept = sorted((one.attempt, one.step) for one in shared_checkpoints(remote, "demo-k"))
        assert kept == ([(1, 1), (1, 2)] if number == 1 else [(2, 3), (2, 5)])


def test_a_slow_upload_skips_to_the_newest_and_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, work = RemoteFolder(str(tmp_path / "shared")), tmp_path / "work"
    gate, put, steps = threading.Event(), remote.put, list[int]()

    def slow(source: Path, name: str) -> None:
        steps.append(int(name.split("/")[2].split("-")[1]))
        assert gate.wait(30)
        put(source, name)

    monkeypatch.setattr(remote, "put", slow)
    run = begun(work)
    uploader = CheckpointUploader(remote, Held(), work / "upload", period=0.0)  # type: ignore[arg-type]
    uploader.offer(save(run, 1), events(work))
    while not steps:
        time.sleep(0.01)
    for step in range(2, 8):
        uploader.offer(save(run, step), events(work))
    assert len(list((work / "upload").iterdir())) == 1  # nothing piles up
    uploader.offer(save(run, 8), events(work), urgent=True)
    assert not uploader.flush(0.2)
    gate.set()
    assert uploader.flush(30)
    uploader.stop(10)
    run.close()
    assert sorted(set(steps)) == [1, 8]
    assert [one.step for one in shared_checkpoints(remote, "demo-k")] == [8]
    assert not list((work / "upload").iterdir())


def test_uploads_go_on_after_an_outage_with_the_newest(tmp_path: Path) -> None:
    folder, work = tmp_path / "shared", tmp_path / "work"
    remote = RemoteFolder(str(folder))
    run = begun(work)
    folder.rename(tmp_path / "away")
    uploader = CheckpointUploader(remote, Held(), work / "upload", period=0.0)  # type: ignore[arg-type]
    uploader.offer(save(run, 1), events(work))
    lines: list[str] = []
    while not lines:
        lines = uploader.lines()
        time.sleep(0.01)
    assert lines[0].endswith("the stage goes on, its checkpoint is uploaded later")
    uploader.offer(save(run, 2), events(work), urgent=True)
    (tmp_path / "away").rename(folder)
    assert uploader.flush(30)
    uploader.stop(10)
    run.close()
    assert [one.step for one in shared_checkpoints(remote, "demo-k")] == [2]
    assert uploader.lines() == ["the checkpoint of step 2 is in the shared store now"]


@pytest.mark.parametrize("checks", range(5))  # three files, the marker, the removal of the older one
def test_an_attempt_that_is_superseded_anywhere_in_an_upload_harms_nothing(tmp_path: Path, checks: int) -> None:
    remote, work, attempt = RemoteFolder(str(tmp_path / "shared")), tmp_path / "work", Held()
    run = begun(work)
    uploader = CheckpointUploader(remote, attempt, work / "upload", period=0.0)  # type: ignore[arg-type]
    uploader.offer(save(run, 1), events(work))
    assert uploader.flush(30)
    attempt.checks_left = checks
    uploader.offer(save(run, 2), events(work))
    uploader.flush(30)
    uploader.stop(10)
    run.close()
    assert [one.step for one in shared_checkpoints(remote, "demo-k")] == ([1] if checks < 4 else [1, 2])
    second = remote.sizes(".work/demo-k/00000001-00000002")
    assert len(second) == checks if checks < 4 else len(second) == 4


@pytest.mark.parametrize(
    "name", ["../../evil", "/evil", "checkpoint/../../evil", "record/other", "evil", "checkpoint//x"]
)
def test_an_uploaded_checkpoint_that_lists_other_names_is_refused(url: str, tmp_path: Path, name: str) -> None:
    remote, said = RemoteFolder(url), list[str]()
    found = SharedCheckpoint.model_validate(
        {"attempt": 1, "step": 5, "accuracy": None, "files": {name: {"size": 1, "sha256": "0" * 64}}}
    )
    remote.write(f"{found.folder('demo-k')}/shared.json", found.model_dump_json().encode())
    assert fetch_further(remote, "demo-k", tmp_path / "work", -1, said.append) is None
    assert "which no checkpoint has" in said[0]
    assert not (tmp_path / "evil").exists()


def test_of_uploaded_checkpoints_a_damaged_one_is_told_of_and_the_one_before_serves(url: str, tmp_path: Path) -> None:
    remote, work, said = RemoteFolder(url), tmp_path / "work", list[str]()
    run = begun(work)
    uploader = CheckpointUploader(remote, Held(), work / "upload", period=0.0)  # type: ignore[arg-type]
    for step, accuracy in ((1, 0.9), (2, 0.1)):
        uploader.offer(save(run, step, accuracy), events(work))
        assert uploader.flush(30)
    uploader.stop(10)
    run.close()
    remote.write(".work/demo-k/00000001-00000002/checkpoint/count.txt", b"9")
    assert fetch_further(remote, "demo-k", tmp_path / "other", -1, said.append) == 1
    assert said == ["the uploaded checkpoint of step 2 is damaged: checkpoint/count.txt is not what was uploaded"]


# Looking after it


def test_verify_reads_every_byte_there(url: str, tmp_path: Path) -> None:
    one = shared(url, tmp_path / "one")
    publish(one, "fine")
    publish(one)
    assert one.shared is not None
    assert all(not findings for _, findings in verify_shared(one.shared))
    manifest = one.manifest("demo", KEY)
    one.shared.remote.write(f"demo/{KEY}/{content_folder(manifest)}/model/weights.bin", b"jello")
    found = {name: findings for name, findings in verify_shared(one.shared) if findings}
    assert [(one.file, one.problem) for one in found[f"demo/{KEY}"]] == [
        ("model/weights.bin", "content differs (sha256)")
    ]
    assert len(found) == 1
    with pytest.raises(ValueError, match="no artifact with key"):
        list(verify_shared(one.shared, ["zz"]))


def test_sweeping_removes_what_kills_left_and_no_artifact(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    one, two = shared(str(folder), tmp_path / "one"), shared(str(folder), tmp_path / "two")
    ref = publish(one)
    for stray in (f"demo/{KEY}/0123456789abcdef/x", "demo/unfinished/fedcba9876543210/x", ".work/demo-k/1-2/x"):
        (folder / stray).parent.mkdir(parents=True)
        (folder / stray).write_text("stray")
    assert one.shared is not None
    assert sweep(one.shared, 0, dry_run=False) == []  # younger than a day: it may be on its way
    for path in folder.rglob("*"):
        os.utime(path, (0, 0))
    planned = sweep(one.shared, 30, dry_run=True)
    assert planned == sweep(one.shared, 30, dry_run=False)
    assert {item.path for item in planned} == {
        f"demo/{KEY}/0123456789abcdef",
        "demo/unfinished/fedcba9876543210",
        ".work/demo-k",
    }
    assert sum(item.bytes for item in planned) == 15
    assert (two.path(ref) / "result.json").is_file()


def test_the_command_shows_where_an_artifact_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNFLOW_STORE", str(tmp_path / "shared"))
    monkeypatch.delenv("ALIGNFLOW_CACHE_GB", raising=False)
    publish(Store(tmp_path / "a" / "data" / "store"), "only here")
    both = publish(open_store(tmp_path / "a"), "in both")
    publish(open_store(tmp_path / "b"), "only there")

    def command(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["artifacts", *arguments, "--root", str(tmp_path / "a")])
        assert result.exit_code == 0, result.output
        return result.output

    lines = command("ls").splitlines()
    assert {line.split("  ")[-1]: line.split()[1] for line in lines[1:]} == {
        "only here": "here",
        "in both": "both",
        "only there": "shared",
    }
    there = next(line.split()[0] for line in lines if line.endswith("only there"))
    assert str(tmp_path / "shared") in command("show", there)
    assert "2 artifacts read and compared by sha256: none damaged" in command("verify", "--shared")
    assert "in 0 items removed" in command("gc", "--shared")
    assert open_store(tmp_path / "a").has_key(both.key[:10])
    assert not open_store(tmp_path / "a").has_key("f" * 20)


def test_a_study_that_one_root_computed_is_cached_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNFLOW_STORE", str(tmp_path / "shared"))
    make_study(tmp_path / "a")
    stages = plan(tmp_path / "b").stages
    assert {stage.status for stage in stages} == {"cached"}
    assert len(stages) > 10
    here = {path.name for path in (tmp_path / "b" / "data" / "store").glob("[!.]*")}
    assert not here & {"pretrain", "sft", "grpo", "sample"}  # a plan reads what tells it how it goes on, no more


def test_the_folder_of_a_publication_follows_all_its_files(tmp_path: Path) -> None:
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    one, two = publish(first, record="1"), publish(second, record="2")
    assert one == two
    folders = {content_folder(store.manifest(one.stage, one.key)) for store in (first, second)}
    assert len(folders) == 2
    assert canonical_json({"a": 1}) == '{"a":1}'
