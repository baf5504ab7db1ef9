"""Whether a local folder holds a whole checkpoint, found out by its files before anything is loaded."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
"""Any of these holds a vocabulary; without one transformers makes an empty tokenizer and says nothing."""


def require_complete(folder: Path) -> None:
    """Raise ValueError, with the remedy, if `folder` lacks its config, its tokenizer or a part of its weights."""
    if (folder / ADAPTER).is_file() and not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        raise ValueError(
            f"{folder} holds an adapter without its base model: merge the two (peft: merge_and_unload, then "
            "save_pretrained) and give that folder"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: give a checkpoint folder in Hugging Face layout")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ValueError(
            f"{folder} has no tokenizer (tokenizer.json): copy the tokenizer files of its base model there"
        )
    for path in _weight_files(folder):
        _require_whole(path)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        remedy = "copy or download the whole checkpoint"
        if any(folder.glob("*.bin")):
            remedy = "its .bin files are pickles, which are never read: save it again as safetensors"
        raise ValueError(f"{folder} has no weights ({WEIGHTS}): {remedy}")
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder / INDEX} is not an index of weights ({error!r}): copy the folder again") from error
    return [folder / str(name) for name in sorted(names)]


def _require_whole(path: Path) -> None:
    """The header of a safetensors file says how long the file is, so that a cut-off copy is felt."""
    if not path.is_file():
        raise ValueError(f"the weights {path} are missing: copy or download the whole checkpoint")
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): copy or download it again") from error
