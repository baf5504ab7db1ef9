"""Attention over packed rows: which kernel runs where, and how a model is made to use it.

A prepared model takes `layout=` (alignment_core.batching) through its forward pass, down to this room. Calls without
it, such as cached decoding, go to transformers' own scaled-dot-product attention.
"""

import importlib.util
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignment_core.batching import Layout
from alignment_core.models import ComputeDtype, autocast, device_of, outside_family
from alignment_core.training_config import Attention

IMPLEMENTATION = "alignflow_packed"
"""The name under which transformers knows this attention."""

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose attention is plain causal attention with rotary positions."""

Kernel = Literal["flash-attn", "torch-varlen", "sdpa"]

KERNELS: dict[Kernel, str] = {
    "flash-attn": "packed rows, flash-attn's varlen kernel",
    "torch-varlen": "packed rows, torch's own varlen kernel (torch.nn.attention.varlen)",
    "sdpa": "packed rows, torch scaled_dot_product_attention sequence by sequence",
}
"""What a log says of each kernel."""

HALF = (torch.bfloat16, torch.float16)


def unsupported(model: nn.Module) -> str | None:
    """Why this model cannot run packed rows; None if it can."""
    reason = outside_family(model, FAMILY)
    config: Any = getattr(model, "config", None)
    if reason is None and config.model_type == "mistral" and getattr(config, "sliding_window", None) is not None:
        return "the model attends through a sliding window"
    return reason


def prepare_attention(model: nn.Module, attention: Attention, compute_dtype: ComputeDtype) -> str:
    """Make `model` ready for packed rows where it can run them; returns a line for the log that names the kernel.

    `padded` keeps right-padded batches and transformers' attention, and so does `auto` for a model that cannot pack.
    """
    reason = "as the settings ask for" if attention == "padded" else unsupported(model)
    if reason is not None or not isinstance(model, PreTrainedModel):
        if isinstance(model, PreTrainedModel) and is_packed(model):
            model.set_attn_implementation("sdpa")
        return f"attention: padded batches, transformers' own attention ({reason})"
    model.set_attn_implementation(IMPLEMENTATION)
    device = device_of(model)
    with autocast(device, compute_dtype):
        return f"attention: {KERNELS[choose_kernel(device, torch.float32)]}"


def is_packed(model: nn.Module) -> bool:
    """Whether `model` was prepared for packed rows."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) == IMPLEMENTATION


def choose_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel that runs on `device` for queries of `dtype`, autocast taken into account.

    Half precision on a CUDA device of compute capability 8 or more has varlen kernels; flash-attn where it is
    installed, else torch's. Everywhere else each sequence is a call of its own.
    """
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype
    if device.type != "cuda" or dtype not in HALF or torch.cuda.get_device_capability(device)[0] < 8:
        return "sdpa"
    return "flash-attn" if importlib.util.find_spec("flash_attn") is not None else "torch-varlen"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: queries (1, Q, N, D), keys and values (1, K, N, D) -> (1, N, Q, D)."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if kwargs.get("dropout") or kwargs.get("sliding_window") is not None:
        raise ValueError("packed rows have neither dropout nor a sliding window: set attention to padded")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    run = _RUNNERS[choose_kernel(query.device, query.dtype)]
    mixed = run(_tokens(query, layout), _tokens(key, layout), _tokens(value, layout), layout, scale)
    if layout.gather is not None:
        mixed = mixed.index_select(0, layout.gather)
    return mixed[None], None


def _tokens(states: Tensor, layout: Layout) -> Tensor:
    """(1, H, N, D) of the packed row -> (M, H, D) of the sequences laid end to end."""
    tokens = states[0].transpose(0, 1)
    return tokens if layout.spread is None else tokens.index_select(0, layout.spread)


def _by_sequence(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """Queries (M, Q, D), keys and values (M, K, D) -> (M, Q, D), one call per sequence, nothing repeated."""
    grouped = query.shape[1] != key.shape[1]
    queries, keys, values = (states.transpose(0, 1)[None].split(layout.lengths, 2) for states in (query, key, value))
    mixed = [
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    return torch.cat([one[0].transpose(0, 1) for one in mixed])


def _torch_varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """The same in one call of torch's varlen kernel."""
    run, takes_groups = _varlen()
    query, key, value = _narrow(query, key, value)
    groups = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0)}
    if groups > 1 and takes_groups:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    longest = max(layout.lengths)
    mixed: Tensor = run(query, key, value, layout.offsets, layout.offsets, longest, longest, **options)
    return mixed


def _flash_attn(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """The same in one call of flash-attn."""
    from flash_attn import flash_attn_varlen_func

    longest, offsets = max(layout.lengths), layout.offsets
    narrow = _narrow(query, key, value)
    mixed: Tensor = flash_attn_varlen_func(
        *narrow, offsets, offsets, longest, longest, softmax_scale=scale, causal=True
    )
    return mixed


_RUNNERS: dict[Kernel, Callable[[Tensor, Tensor, Tensor, Layout, float], Tensor]] = {
    "flash-attn": _flash_attn,
    "torch-varlen": _torch_varlen,
    "sdpa": _by_sequence,
}


@cache
def _varlen() -> tuple[Callable[..., Any], bool]:
    """torch's varlen attention, and whether this release takes fewer key/value heads than query heads."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters


def _narrow(*states: Tensor) -> list[Tensor]:
    """Under autocast in its type, which a custom kernel does not see to; rotary products may have widened them."""
    device = states[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states[0].dtype
    return [tensor.to(dtype).contiguous() for tensor in states]


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for a pass without cache and padding: causal by itself, and packed rows bring their layout."""
    if kwargs.get("attention_mask") is None and kwargs["q_length"] == kwargs["kv_length"]:
        return None
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)
