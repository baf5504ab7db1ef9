"""The model a study starts from, as a cached stage."""

import hashlib
from pathlib import Path

from alignment_core.model_folders import require_complete
from alignment_core.prompts import read_template
from alignment_core.records import ArtifactRef
from alignment_core.stage_config import ImportModelStage, PretrainStage
from alignment_core.study_config import StudyConfig
from tasks.stages import run_cached
from tasks.workspace import Workspace

BLOCK = 1 << 12
BLOCKS = 1 << 10
"""A large weight file is hashed in so many blocks, evenly spaced: milliseconds, and a change to any of its large
tensors (merged adapters leave both ends of a file as they were) is all but sure to be felt."""


def base_model(workspace: Workspace, config: StudyConfig) -> ArtifactRef:
    """A tiny model pretrained here, or a checkpoint by reference."""
    model = config.model
    if model.scratch is None:
        return import_checkpoint(workspace, model.source, model.revision, "base model")
    if config.data.arithmetic is None:
        raise ValueError(
            "model.source 'scratch' is pretrained on arithmetic and needs data.kind 'arithmetic'; "
            "for other data set model.source to a folder or hub id and model.scratch to null"
        )
    stage = PretrainStage(
        model=model.scratch,
        arithmetic=config.data.arithmetic,
        template=read_template(config.prompt),
        plain_template=read_template(config.plain_prompt or "plain"),
        seed=config.seed,
    )
    return run_cached(workspace, "pretrain", stage, {}, "base model")


def teacher_model(workspace: Workspace, config: StudyConfig) -> ArtifactRef:
    """The checkpoint that `distillation.teacher` names; ValueError if it names none."""
    teacher = config.distillation.teacher
    if teacher is None:
        raise ValueError("distillation.teacher is not set: give a model folder or a hub id")
    return import_checkpoint(workspace, teacher, config.distillation.revision, "teacher")


def import_checkpoint(workspace: Workspace, source: str, revision: str | None, label: str) -> ArtifactRef:
    """A pretrained checkpoint, local or on the hub, by reference.

    Raises ValueError for a path without a whole checkpoint, before anything waits for a hub that cannot know it.
    """
    is_path = source.startswith((".", "/", "~")) or source.count("/") != 1
    folder = Path(source).expanduser()
    if is_path and not folder.is_dir():
        raise ValueError(f"no model folder {source!r}: give a folder in Hugging Face layout, or a hub id owner/name")
    if folder.is_dir():
        require_complete(folder)
    content = folder_identity(folder)
    where = source if content is None else str(folder.resolve())
    stage = ImportModelStage(source=where, revision=revision, content=content)
    return run_cached(workspace, "import_model", stage, {}, label)


def folder_identity(folder: Path) -> str | None:
    """Digest of a local checkpoint by names, sizes and blocks of its files; None if it is not a folder."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in {".json", ".safetensors", ".txt", ".model", ".jinja"}:
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                for offset in range(0, size, max(BLOCK, size // BLOCKS)):
                    file.seek(offset)
                    digest.update(file.read(BLOCK))
    return digest.hexdigest()
