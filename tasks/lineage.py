"""What a stage stands on, as the tracker shows it: data sets, models, and where in the store they lie."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignment_core.manifest import Manifest
from alignment_core.records import ArtifactRef
from alignment_core.redaction import redact
from alignment_core.sharing import STORE
from alignment_core.stage import StageSpec
from alignment_core.store import Store

CONTEXTS = {
    ("filter", "problems"): "filtering",
    ("sample", "problems"): "sampling",
    ("sft", "examples"): "training",
    ("sft", "problems"): "validation",
    ("dpo", "pairs"): "training",
    ("dpo", "problems"): "validation",
    ("grpo", "problems"): "training",
}
"""(Stage, name of its input) -> what the data is there for; other inputs are no data sets."""


@dataclass(frozen=True)
class Dataset:
    """Problems, traces or pairs that a stage reads."""

    name: str
    digest: str
    uri: str
    context: str


@dataclass(frozen=True)
class Model:
    """Weights in the store, or a pointer to some."""

    ref: ArtifactRef
    name: str
    params: dict[str, str]


def artifact_uri(root: Path, ref: ArtifactRef) -> str:
    """Where an artifact lies: in the shared store if there is one, else under the root; without credentials.

    In a shared store the manifest there says in which folder the files of that digest are.
    """
    shared = os.environ.get(STORE, "")
    if not shared:
        return f"{(root / 'data' / 'store').as_uri()}/{ref.stage}/{ref.key}"
    base = redact(shared) if "://" in shared else Path(shared).resolve().as_uri()
    return f"{base.rstrip('/')}/{ref.stage}/{ref.key}"


def find_manifest(store: Store, ref: ArtifactRef) -> Manifest | None:
    """The manifest of an artifact; None if it is gone, or is another one now."""
    with suppress(FileNotFoundError, ValidationError):
        found = store.manifest(ref.stage, ref.key)
        return found if found.digest == ref.digest else None
    return None


def datasets_of(root: Path, store: Store, spec: StageSpec) -> Iterator[Dataset]:
    """The data sets a stage reads; an evaluation's are the problems that its completions answer."""
    if spec.stage == "grade" and (sampled := _sampled(store, spec)) is not None:
        split = str(sampled.settings.get("split", ""))
        if problems := sampled.parents.get("problems"):
            yield _dataset(root, store, problems, "evaluation", split)
        return
    for name, ref in spec.inputs.items():
        if context := CONTEXTS.get((spec.stage, name)):
            yield _dataset(root, store, ref, context, str(spec.config.get("split", "")))


def _dataset(root: Path, store: Store, ref: ArtifactRef, context: str, split: str) -> Dataset:
    manifest = find_manifest(store, ref)
    name = manifest.label if manifest is not None else f"{ref.stage} {ref.key[:12]}"
    if manifest is not None and ref.stage == "prepare":
        kind = (manifest.settings.get("data") or {}).get("kind", "")
        name = f"{kind} {split or 'problems'}".strip()
    return Dataset(name, ref.digest, artifact_uri(root, ref), context)


def _sampled(store: Store, spec: StageSpec) -> Manifest | None:
    """The manifest of the completions that a grade stage reads."""
    ref = spec.inputs.get("completions")
    return find_manifest(store, ref) if ref is not None else None


def model_behind(store: Store, spec: StageSpec) -> ArtifactRef | None:
    """The model that a stage starts from, samples from or evaluates; None if it has none to do with."""
    if spec.stage == "grade":
        sampled = _sampled(store, spec)
        return sampled.parents.get("model") if sampled is not None else None
    return spec.inputs.get("model")


def holds_model(artifact: Path) -> bool:
    """Whether an artifact holds weights, or a pointer to some."""
    return (artifact / "model").is_dir() or (artifact / "record" / "location.json").is_file()


def describe_model(root: Path, store: Store, ref: ArtifactRef) -> Model:
    """What the tracker says of the model in an artifact."""
    manifest = find_manifest(store, ref)
    settings: Mapping[str, Any] = manifest.settings if manifest is not None else {}
    label = manifest.label if manifest is not None else f"{ref.stage} {ref.key[:12]}"
    where = artifact_uri(root, ref)
    params = {"label": label, "stage": ref.stage, "key": ref.key, "digest": ref.digest}
    if ref.stage == "import_model":
        params |= {"uri": where, "source": redact(str(settings.get("source", "")))}
    else:
        params |= {"uri": f"{where}/model"}
    return Model(ref, label, params)
