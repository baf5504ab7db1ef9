"""Looking into the artifact store, for people."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from alignment_core.acceptance import accept, inputs_to_rerun
from alignment_core.locks import artifacts_in_use
from alignment_core.manifest import Manifest
from alignment_core.store import Store
from alignment_core.store_access import open_store


def existing_store(root: Path) -> Store:
    """The store under a root folder; ValueError if there is none, nor a shared one behind it."""
    store = open_store(root)
    if store.shared is None and not store.root.is_dir():
        raise ValueError(f"no artifact store under {root}: run a study there first, or give --root")
    return store


def list_artifacts(root: Path, stage: str | None) -> Iterator[str]:
    """A line of headings, then one per artifact; with a shared store also where it is: here, shared, both."""
    store = existing_store(root)
    where = f"{'where':6}  " if store.shared is not None else ""
    sizes = f"{'size':>12} {'computed in':>12}"
    yield f"{'key':12}  {where}{'stage':12} {sizes}  {'began':16}  {'study':12}  label"
    for place, manifest in _places(store):
        if stage is not None and manifest.stage != stage:
            continue
        size = sum(entry.size for entry in manifest.files.values())
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.producer.started))
        where = f"{place:6}  " if store.shared is not None else ""
        seconds = manifest.producer.seconds
        yield (
            f"{manifest.key[:12]}  {where}{manifest.stage:12} {size / 1e6:9.2f} MB {seconds:10.1f} s  "
            f"{when}  {manifest.producer.annotations.get('study', ''):12}  {manifest.label}"
        )


def _places(store: Store) -> list[tuple[str, Manifest]]:
    """(where, manifest), oldest first."""
    here = {manifest.key: manifest for manifest in store.manifests()}
    there = {manifest.key: manifest for manifest in store.shared.manifests()} if store.shared is not None else {}
    found = [("both" if key in there else "here", manifest) for key, manifest in here.items()]
    found += [("shared", manifest) for key, manifest in there.items() if key not in here]
    return sorted(found, key=lambda one: one[1].producer.started)


def accept_artifact(root: Path, key: str, reason: str) -> list[str]:
    """Let an artifact answer for today's code; says what changed, and what else has to be accepted to matter."""
    store = existing_store(root)
    manifest = store.find(key)
    acceptance = accept(store, manifest, reason)
    today = acceptance.components.key()
    lines = [
        f"{manifest.label} ({manifest.stage}/{manifest.key[:12]}) now answers for {today[:12]} too",
        *acceptance.changed,
        f"to take it back, remove {store.acceptance_path(manifest.stage, today)}",
    ]
    for parent in inputs_to_rerun(store, manifest):
        lines.append(
            f"its input {parent.label} ({parent.stage}/{parent.key[:12]}) would still be computed anew: accept it too, "
            "or this one counts only if the new one is equal"
        )
    return lines


def show_artifact(root: Path, key: str) -> str:
    """Everything the manifest says but the code digests, as indented JSON, and where the files lie."""
    store = existing_store(root)
    manifest = store.find(key)
    shown = manifest.model_dump(mode="json")
    shown["components"]["code"] = f"{len(manifest.components.code)} definitions"
    accepted = [
        {"answers_for": one.components.key(), "reason": one.reason, "changed": one.changed, "time": one.time}
        for one in store.acceptances(manifest.ref())
    ]
    shown |= {"accepted": accepted} if accepted else {}
    folder = store.folder(manifest.ref())
    place = str(folder)
    if store.shared is not None and not folder.is_dir():
        place = f"{store.shared.remote.url}/{manifest.stage}/{manifest.key}"
    return f"{place}\n{json.dumps(shown, indent=1)}"


def export_model(root: Path, key: str, folder: Path) -> str:
    """Copy the model of an artifact to a new folder; returns what was done."""
    store = existing_store(root)
    manifest = store.find(key)
    if not any(name.startswith("model/") for name in manifest.files):
        raise ValueError(
            f"{manifest.label} ({manifest.stage}/{manifest.key[:12]}) holds no weights; "
            "'alignflow artifacts ls --stage sft' or '--stage grpo' lists those that do"
        )
    if folder.exists():
        raise ValueError(f"{folder} exists: give a new folder")
    staging = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    with artifacts_in_use(store.root, [manifest.ref()]):
        shutil.copytree(store.path(manifest.ref()) / "model", staging)
    staging.rename(folder)
    return f"{manifest.label} -> {folder} (load it with AutoModelForCausalLM.from_pretrained)"
