"""The model a study starts from, as a cached stage."""

import hashlib
from pathlib import Path

from alignment_core.config import ImportModelStage, PretrainStage, StudyConfig, read_template
from alignment_core.records import ArtifactRef
from tasks.stages import run_cached
from tasks.workspace import Workspace

EDGE = 1 << 20
"""Bytes hashed at each end of a large weight file: enough to tell checkpoints apart in milliseconds."""


def base_model(workspace: Workspace, config: StudyConfig) -> ArtifactRef:
    """A tiny model pretrained here, or a checkpoint by reference."""
    model = config.model
    if model.scratch is None:
        return import_checkpoint(workspace, model.source, model.revision, "base model")
    if config.data.arithmetic is None:
        raise ValueError(
            "model.source 'scratch' is pretrained on arithmetic and needs data.kind 'arithmetic'; "
            "for other data set model.source to a folder or hub id"
        )
    stage = PretrainStage(
        model=model.scratch,
        arithmetic=config.data.arithmetic,
        template=read_template(config.prompt),
        plain_template=read_template(config.plain_prompt or "plain"),
        seed=config.seed,
    )
    return run_cached(workspace, "pretrain", stage, {}, "base model")


def import_checkpoint(workspace: Workspace, source: str, revision: str | None, label: str) -> ArtifactRef:
    """A pretrained checkpoint, local or on the hub, by reference."""
    stage = ImportModelStage(source=source, revision=revision, content=folder_identity(Path(source)))
    return run_cached(workspace, "import_model", stage, {}, label)


def folder_identity(folder: Path) -> str | None:
    """Digest of a local checkpoint by names, sizes and the edges of its files; None if it is not a folder."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in {".json", ".safetensors", ".txt", ".model", ".jinja"}:
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                digest.update(file.read(EDGE))
                file.seek(max(size - EDGE, 0))
                digest.update(file.read(EDGE))
    return digest.hexdigest()
