"""Looking into the artifact store, for people."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from alignment_core.acceptance import accept, inputs_to_rerun
from alignment_core.store import Store


def open_store(root: Path) -> Store:
    """The store under a root folder; ValueError if there is none."""
    folder = root / "data" / "store"
    if not folder.is_dir():
        raise ValueError(f"no artifact store under {root}: run a study there first, or give --root")
    return Store(folder)


def list_artifacts(root: Path, stage: str | None) -> Iterator[str]:
    """A line of headings, then one per artifact."""
    yield f"{'key':12}  {'stage':12} {'size':>12} {'computed in':>12}  {'began':16}  {'study':12}  label"
    for manifest in open_store(root).manifests():
        if stage is not None and manifest.stage != stage:
            continue
        size = sum(entry.size for entry in manifest.files.values())
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.producer.started))
        yield (
            f"{manifest.key[:12]}  {manifest.stage:12} {size / 1e6:9.2f} MB {manifest.producer.seconds:10.1f} s  "
            f"{when}  {manifest.producer.annotations.get('study', ''):12}  {manifest.label}"
        )


def accept_artifact(root: Path, key: str, reason: str) -> list[str]:
    """Let an artifact answer for today's code; says what changed, and what else has to be accepted to matter."""
    store = open_store(root)
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
    store = open_store(root)
    manifest = store.find(key)
    shown = manifest.model_dump(mode="json")
    shown["components"]["code"] = f"{len(manifest.components.code)} definitions"
    accepted = [
        {"answers_for": one.components.key(), "reason": one.reason, "changed": one.changed, "time": one.time}
        for one in store.acceptances(manifest.ref())
    ]
    shown |= {"accepted": accepted} if accepted else {}
    return f"{store.path(manifest.ref())}\n{json.dumps(shown, indent=1)}"


def export_model(root: Path, key: str, folder: Path) -> str:
    """Copy the model of an artifact to a new folder; returns what was done."""
    store = open_store(root)
    manifest = store.find(key)
    source = store.path(manifest.ref()) / "model"
    if not source.is_dir():
        raise ValueError(
            f"{manifest.label} ({manifest.stage}/{manifest.key[:12]}) holds no weights; "
            "'alignflow artifacts ls --stage sft' or '--stage grpo' lists those that do"
        )
    if folder.exists():
        raise ValueError(f"{folder} exists: give a new folder")
    staging = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(source, staging)
    staging.rename(folder)
    return f"{manifest.label} -> {folder} (load it with AutoModelForCausalLM.from_pretrained)"
