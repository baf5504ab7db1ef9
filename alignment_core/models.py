"""Models and tokenizers in and out: Hugging Face folders with safetensors, float32 master weights.

Nothing a checkpoint supplies decides how we sample: of its generation config only the token ids are kept.
"""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from alignment_core.hub import loading_options

ComputeDtype = Literal["float32", "bfloat16"]


def choose_device() -> torch.device:
    """The first CUDA device if there is one, else the CPU; of several processes on a host, each one's own device."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK")
    return torch.device("cuda") if rank is None else torch.device("cuda", int(rank) % torch.cuda.device_count())


def load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Tokenizer of a local folder or a hub id.

    Raises ValueError for a path that is not a folder, a hub that cannot be reached, and a tokenizer without vocabulary.
    """
    where = _checked_source(source)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, **loading_options(where, revision))
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"{source} has no tokenizer, or an empty one: copy the files of its base model there")
    return tokenizer


def load_model(
    source: str | Path,
    revision: str | None = None,
    device: torch.device | str | None = None,
) -> PreTrainedModel:
    """Causal language model of a local folder or a hub id: float32 weights, dropout off, on `device`.

    Only safetensors are read (a pickle can run code). Raises ValueError for a path that is not a folder, or for
    weights that lack a part of the model.
    """
    where = _checked_source(source)
    with _no_bars():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            **loading_options(where, revision),
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    model: PreTrainedModel
    model, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(
            f"{source} lacks the weights {missing} …, which would be random: give a complete causal language model"
        )
    disable_dropout(model)
    model.generation_config = _token_ids_only(model)
    nn.Module.to(model, torch.device(device) if device is not None else choose_device())
    return model.eval()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors, in the dtype they are held in), configs and tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = _token_ids_only(model)
    with _no_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def eos_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a text: the tokenizer's, the model config's, and the generation config's (often a list)."""
    sources = (
        getattr(tokenizer, "eos_token_id", None),
        getattr(getattr(model, "config", None), "eos_token_id", None),
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
    )
    found: set[int] = set()
    for source in sources:
        found.update(source if isinstance(source, (list, tuple)) else [] if source is None else [source])
    return frozenset(found)


def pad_id(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills padding: pad, else EOS, else 0. Any id with an embedding would do: masks come from lengths.

    A tokenizer may have been given a padding token that the model was never enlarged for.
    """
    rows = getattr(getattr(model, "config", None), "vocab_size", None)
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(candidate, int) and (rows is None or candidate < rows):
            return candidate
    return 0


def vocab_limit(tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids from here on are padding of the embedding table: never sampled, probability 0 in training."""
    return len(tokenizer)


def outside_family(model: nn.Module, family: Sequence[str]) -> str | None:
    """Why `model` is no causal transformer of these model types with full attention in every layer; None if it is."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if not isinstance(model, PreTrainedModel) or kind not in family:
        return f"model type {kind} is none of {', '.join(family)}"
    if any(layer != "full_attention" for layer in getattr(config, "layer_types", None) or ()):
        return "the model has layers other than full attention"
    return None


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's weights."""
    return next(model.parameters()).device


def autocast(device: torch.device, compute_dtype: ComputeDtype) -> AbstractContextManager[object]:
    """Context in which float32 master weights compute in `compute_dtype`."""
    if compute_dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0, so that train and eval mode compute the same log-probs."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def frozen_copy(model: PreTrainedModel, compute_dtype: ComputeDtype) -> PreTrainedModel:
    """`model` as it is now, to score with: no gradients, no dropout, and scores bit-equal to its own.

    The matrices of linear layers are held in the compute type, to which autocast would round them anyway. What is
    added to in float32 (norms, biases) or read by an embedding (a tied head with it) is held as it is.
    """
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - looked_up
    narrow = torch.bfloat16 if compute_dtype == "bfloat16" else None
    copies: dict[int, Any] = {
        id(weight): nn.Parameter(
            weight.detach().to(narrow if id(weight) in matrices else None, copy=True), requires_grad=False
        )
        for weight in model.parameters()
    }
    # Given beforehand, so that no copy of the whole is ever held in float32.
    frozen: PreTrainedModel = copy.deepcopy(model, copies)
    disable_dropout(frozen)
    return frozen.eval()


def set_checkpointing(model: PreTrainedModel, on: bool) -> None:
    """Recompute activations in the backward pass, or keep them; the methods' name changed within transformers 5."""
    family = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on or getattr(model, f"is_{family}_checkpointing"):
        getattr(model, f"{family}_checkpointing_{'enable' if on else 'disable'}")()


def tensors_by_name(model: nn.Module) -> Mapping[str, torch.Tensor]:
    """What a checkpoint must hold: parameters, each tied one once, and persistent buffers."""
    parameters = dict(model.named_parameters())
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - parameters.keys()
    return {name: value for name, value in model.state_dict().items() if name not in tied}


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers' progress bars off the terminal, which has a display of its own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _token_ids_only(model: PreTrainedModel) -> GenerationConfig:
    """A generation config without sampling defaults (penalties, top-k …), which would leak into what is sampled."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    kept = {name: getattr(model.generation_config, name, None) for name in names}
    return GenerationConfig(**{name: value for name, value in kept.items() if value is not None})


def _checked_source(source: str | Path) -> str:
    """A hub id as it is; anything that looks like a path must be a folder."""
    text = str(source)
    if isinstance(source, Path) or text.startswith((".", "/", "~")):
        folder = Path(text).expanduser()
        if not folder.is_dir():
            raise ValueError(f"no model folder at {folder}: give a folder in Hugging Face layout, or a hub id")
        return str(folder)
    return text
