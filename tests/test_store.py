"""Artifacts: whole or not there, and a reason for every miss."""

import json
import os
from pathlib import Path

import pytest

from alignment_core.audit import verify
from alignment_core.changes import differences, explain_miss
from alignment_core.manifest import Components, ManifestDraft, Producer
from alignment_core.records import ArtifactRef
from alignment_core.store import Store

COMPONENTS = Components(
    stage="demo",
    config={"lr": 0.1, "model": {"size": 2}},
    inputs={"data": "abc"},
    code={"alignment_core.demo.run": "1"},
    versions={"torch": "2.13.0"},
)


def publish(store: Store, components: Components = COMPONENTS, text: str = "hello") -> ArtifactRef:
    """A small artifact with one content file and one record file."""
    source = store.root / ".work" / "x"
    (source / "record").mkdir(parents=True)
    (source / "result.txt").write_text(text)
    (source / "record" / "events.jsonl").write_text(str(os.urandom(8)))
    draft = ManifestDraft(
        stage="demo",
        key=components.key(),
        label="demo/one",
        components=components,
        parents={},
        producer=Producer(started=0.0, seconds=1.0, host="here"),
    )
    return store.publish(source, draft)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("key", "other", "it is of demo/other"),
        ("digest", "0" * 64, "its digest is not that of the files it lists"),
        ("files", {}, "its digest is not that of the files it lists"),
        ("files", {"../../secret": {"size": 1, "sha256": "0", "mtime_ns": 0}}, "which lies outside the artifact"),
        ("files", {"/etc/hostname": {"size": 1, "sha256": "0", "mtime_ns": 0}}, "which lies outside the artifact"),
        ("files", {"a/../../b": {"size": 1, "sha256": "0", "mtime_ns": 0}}, "which lies outside the artifact"),
        ("files", {"": {"size": 1, "sha256": "0", "mtime_ns": 0}}, "which is no name of a file"),
        ("files", {"./a": {"size": 1, "sha256": "0", "mtime_ns": 0}}, "which is no name of a file"),
        ("files", {"a\0b": {"size": 1, "sha256": "0", "mtime_ns": 0}}, "which is no name of a file"),
        ("files", {"manifest.json": {"size": 1, "sha256": "0", "mtime_ns": 0}}, "which is no name of a file"),
        ("parents", {"model": {"stage": "../..", "key": "x", "digest": "d"}}, "lies outside the store"),
        ("parents", {"model": {"stage": "sft", "key": "../x", "digest": "d"}}, "lies outside the store"),
    ],
)
def test_an_edited_manifest_is_damage(tmp_path: Path, field: str, value: object, told: str) -> None:
    store = Store(tmp_path)
    ref = publish(store)
    path = store.path(ref) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    found = store.lookup(ref.stage, ref.key)
    assert (found.status, found.ref) == ("damaged", None)
    assert told in found.reason


def test_published_is_found_and_digest_covers_content_only(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "a"), Store(tmp_path / "b")
    first, second = publish(one), publish(two)
    assert one.lookup("demo", COMPONENTS.key()).ref == first
    assert first.digest == second.digest  # their records differ
    assert publish(Store(tmp_path / "c"), text="other").digest != first.digest


@pytest.mark.parametrize(
    ("damage", "status", "words"),
    [
        (lambda folder: (folder / "result.txt").unlink(), "damaged", "is missing"),
        (lambda folder: (folder / "result.txt").write_text("hell"), "damaged", "4 bytes, not 5"),
        (lambda folder: (folder / "result.txt").write_text("jello"), "damaged", "was edited"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "damaged", "unreadable"),
        (lambda folder: folder.rename(folder.with_name("gone")), "deleted", "was deleted"),
    ],
)
def test_damage_is_a_miss_that_says_why(tmp_path: Path, damage, status: str, words: str) -> None:  # type: ignore[no-untyped-def]
    store = Store(tmp_path)
    damage(store.path(publish(store)))
    found = store.lookup("demo", COMPONENTS.key())
    assert (found.status, found.ref) == (status, None)
    assert words in found.reason


def behind_a_link(folder: Path, outside: Path) -> None:
    """The file as it was, its folder a link to elsewhere."""
    (folder / "record").rename(outside)
    (folder / "record").symlink_to(outside)


@pytest.mark.parametrize(
    "plant",
    [
        lambda folder, outside: ((folder / "result.txt").rename(outside), (folder / "result.txt").symlink_to(outside)),
        behind_a_link,
        lambda folder, _: ((folder / "result.txt").unlink(), (folder / "result.txt").mkdir()),
        lambda folder, _: ((folder / "result.txt").unlink(), os.mkfifo(folder / "result.txt")),
    ],
    ids=["file", "folder", "no file", "fifo"],
)
def test_an_artifact_holds_plain_files_only(tmp_path: Path, plant) -> None:  # type: ignore[no-untyped-def]
    store = Store(tmp_path / "store")
    ref = publish(store)
    plant(store.path(ref), tmp_path / "outside")
    found = store.lookup(ref.stage, ref.key)
    assert (found.status, found.ref) == ("damaged", None)
    assert "is no plain file, or lies behind a symbolic link" in found.reason
    ((_, findings),) = verify(store, [])
    assert findings


def test_a_store_may_itself_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    store = Store(tmp_path / "store")
    ref = publish(store)
    assert store.lookup(ref.stage, ref.key).status == "hit"


def test_a_touched_but_equal_file_is_still_a_hit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.path(publish(store)) / "result.txt"
    os.utime(file, (1, 1))
    assert store.lookup("demo", COMPONENTS.key()).status == "hit"


def test_a_folder_without_manifest_is_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "demo" / COMPONENTS.key()).mkdir(parents=True)
    assert store.lookup("demo", COMPONENTS.key()).status == "missing"
    assert list(store.manifests()) == []


def test_key_is_canonical_and_feels_every_component() -> None:
    shuffled = COMPONENTS.model_copy(update={"config": {"model": {"size": 2}, "lr": 0.1}})
    assert shuffled.key() == COMPONENTS.key()
    for change in (
        {"config": {"lr": 0.2, "model": {"size": 2}}},
        {"inputs": {"data": "abd"}},
        {"code": {"alignment_core.demo.run": "2"}},
        {"versions": {"torch": "2.14.0"}},
    ):
        assert COMPONENTS.model_copy(update=change).key() != COMPONENTS.key()


def test_a_miss_names_what_changed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert explain_miss(store, COMPONENTS, "demo/one") == "first run"
    publish(store)
    changed = COMPONENTS.model_copy(update={"config": {"lr": 0.2, "model": {"size": 2}}})
    assert explain_miss(store, changed, "demo/one") == "config changed: lr 0.1 -> 0.2"
    assert differences(COMPONENTS, COMPONENTS.model_copy(update={"code": {"a.b": "1"}})) == [
        "code changed: a.b, alignment_core.demo.run"
    ]


def test_find_by_prefix(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ref = publish(store)
    assert store.find(ref.key[:6]).ref() == ref
    with pytest.raises(ValueError, match="no artifact with key"):
        store.find("zz")
