"""How large a model is, told from its configuration alone: what its weights and checkpoints will take on disk.

Decoders of the Llama family (Qwen2 and Qwen3 among them) are counted; nothing is downloaded and no torch imported.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment_core.config import ScratchModelConfig
from alignment_core.records import Record

WEIGHT_BYTES = 4
"""Per parameter, published: float32."""
CHECKPOINT_BYTES = 12
"""Per parameter, in a checkpoint: float32 weights and the two moments of Adam."""


class ModelSize(Record):
    """Parameters of a model, and how they are known."""

    parameters: int
    source: str


def scratch_size(shape: ScratchModelConfig) -> ModelSize:
    """Size of a model trained from scratch; its vocabulary may come out smaller than the bound counted here."""
    config = {**shape.model_dump(), "model_type": "qwen2", "tie_word_embeddings": True}
    return ModelSize(parameters=count_parameters(config), source="model.scratch")


def checkpoint_size(source: str, revision: str | None = None) -> ModelSize | None:
    """Size of a pretrained checkpoint: a local folder, or a hub id whose config.json is in the local hub cache.

    Without that file the size in the name (`…-1.5B`) is taken; None if the name holds none either.
    """
    path = _config_file(source, revision)
    if path is not None:
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            return ModelSize(parameters=count_parameters(config), source="its config.json")
        except (ValueError, KeyError):
            pass  # a shape this room cannot count; its name may still tell
    named = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z])", Path(source).name)
    if named is None:
        return None
    return ModelSize(parameters=round(float(named[1]) * {"B": 1e9, "M": 1e6}[named[2]]), source="its name")


def count_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of a decoder with grouped-query attention and a gated MLP, from the fields of its config.json.

    V*H embedding (twice unless tied) + L * (q, k, v, o + 3*H*I + 2*H) + H. Raises KeyError if a field is missing.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    query, shared = heads * width, (config.get("num_key_value_heads") or heads) * width
    biased = config.get("model_type") == "qwen2" or config.get("attention_bias", False)
    attention = 2 * hidden * query + 2 * hidden * shared + (query + 2 * shared if biased else 0)
    norms = 2 * hidden + (2 * width if config.get("model_type") == "qwen3" else 0)
    layer = attention + 3 * hidden * config["intermediate_size"] + norms
    embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return int(embeddings + config["num_hidden_layers"] * layer + hidden)


def _config_file(source: str, revision: str | None) -> Path | None:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder / "config.json" if (folder / "config.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None
