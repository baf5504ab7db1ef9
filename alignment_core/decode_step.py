"""One decoding step over a cache of fixed size, written out for the Llama family (Llama, Qwen2, Qwen3).

Every tensor keeps its shape and address from step to step and nothing waits for the host, so that a CUDA graph
can record a step. Slot r holds one sequence from position 0 on, without padding in front:

    keys[layer][r, t], values[layer][r, t]        t = 0 … position[r]

Shapes: R slots in the cache, A of them in use, L positions, K key/value heads, Q query heads, D head size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from alignment_core.models import device_of, outside_family

FAMILY = ("llama", "qwen2", "qwen3")
"""Model types whose layers are: norm, attention with rotary positions, norm, gated MLP; both with a residual."""

ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary scalings whose frequencies never change with the length seen."""

PREFILL_TOKENS = 32_768
"""Padded prompt tokens in one forward pass at most."""


class Cache(NamedTuple):
    """Keys and values of every layer."""

    keys: list[Tensor]
    """(R, L, K, D) per layer."""
    values: list[Tensor]
    """(R, L, K, D) per layer."""

    def move(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Copy the first `length` positions of slots `sources` into slots `targets`."""
        for states in (*self.keys, *self.values):
            states[targets, :length] = states[sources, :length]


def unsupported(model: nn.Module) -> str | None:
    """Why this module cannot decode `model`; None if it can."""
    reason = outside_family(model, FAMILY)
    if reason is not None:
        return reason
    scaling = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type", "default")
    return None if scaling in ROTARY else f"rotary scaling {scaling} depends on the length"


def new_cache(model: PreTrainedModel, slots: int, length: int) -> Cache:
    """An empty cache in the type and on the device of the weights; zeros, since masked positions are still read."""
    config, attention = model.config, _first_attention(model)
    shape = (slots, length, config.num_key_value_heads, attention.head_dim)

    def states() -> list[Tensor]:
        dtype = attention.k_proj.weight.dtype
        return [torch.zeros(shape, dtype=dtype, device=device_of(model)) for _ in range(config.num_hidden_layers)]

    return Cache(states(), states())


def prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    """Put prompt r into slot r and return (len(prompts), H) hidden states of the last tokens.

    Equal prompts are run once. Prompts are padded behind, where causal attention keeps padding out of sight.
    """
    slots: dict[tuple[int, ...], list[int]] = {}
    for slot, prompt in enumerate(prompts):
        slots.setdefault(tuple(prompt), []).append(slot)
    distinct = sorted(slots, key=len)
    device = device_of(model)
    last = torch.empty(len(prompts), model.config.hidden_size, dtype=cache.keys[0].dtype, device=device)
    group = max(1, PREFILL_TOKENS // len(distinct[-1]))
    for start in range(0, len(distinct), group):
        chosen = distinct[start : start + group]
        longest = len(chosen[-1])
        ids = torch.tensor([[*prompt, *[prompt[-1]] * (longest - len(prompt))] for prompt in chosen], device=device)
        ends = torch.tensor([len(prompt) - 1 for prompt in chosen], device=device)
        made: Any = DynamicCache(config=model.config)
        hidden = model.base_model(input_ids=ids, past_key_values=made, use_cache=True).last_hidden_state
        targets = torch.tensor([slot for prompt in chosen for slot in slots[prompt]], device=device)
        rows = torch.tensor([row for row, prompt in enumerate(chosen) for _ in slots[prompt]], device=device)
        last[targets] = hidden[rows, ends[rows]]
        for layer, states in enumerate(made.layers):
            cache.keys[layer][targets, :longest] = states.keys.transpose(1, 2)[rows]
            cache.values[layer][targets, :longest] = states.values.transpose(1, 2)[rows]
    return last


def decode(model: PreTrainedModel, ids: Tensor, position: Tensor, cache: Cache, span: int, flash: bool) -> Tensor:
    """(A, H) hidden states after tokens `ids` (A,), which go to `position` (A,) of slots 0 … A - 1.

    No position may reach `span` <= L, a fixed number: what lies behind it is not read.
    """
    body: Any = model.base_model
    hidden: Tensor = body.embed_tokens(ids)
    rotation = _rotation(*body.rotary_emb(hidden, position[:, None]))
    slots = torch.arange(len(ids), device=ids.device) * cache.keys[0].shape[1] + position
    attend = FlashAttention(position, cache.keys[0].shape[1], span) if flash else MaskedAttention(position, span)
    for index, layer in enumerate(body.layers):
        attention = layer.self_attn
        query, key, value = _project(attention, _norm(layer.input_layernorm, hidden), rotation)
        keys, values = cache.keys[index], cache.values[index]
        keys.flatten(0, 1).index_copy_(0, slots, key)
        values.flatten(0, 1).index_copy_(0, slots, value)
        mixed = attend(query, keys[: len(ids)], values[: len(ids)], attention.scaling)
        hidden = hidden + attention.o_proj(mixed.flatten(1))
        hidden = hidden + layer.mlp(_norm(layer.post_attention_layernorm, hidden))
    return _norm(body.norm, hidden)


class MaskedAttention:
    """Attention in plain torch, for any device and type: reads `span` positions of every slot."""

    def __init__(self, position: Tensor, span: int) -> None:
        self._span = span
        self._mask = (torch.arange(span, device=position.device) <= position[:, None])[:, None, None, :]

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """(A, Q, D) from queries (A, Q, D) and (A, L, K, D) keys and values."""
        # The queries that share a key/value head are handled as positions of one, so nothing is repeated.
        grouped = query.unflatten(1, (keys.shape[2], -1))
        keys, values = keys[:, : self._span].transpose(1, 2), values[:, : self._span].transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=self._mask, scale=scale)
        return mixed.flatten(1, 2)


class FlashAttention:
    """Attention by torch's own flash kernel, half precision on CUDA: reads of each slot only what is filled."""

    def __init__(self, position: Tensor, length: int, span: int) -> None:
        self._span = span
        self._queries = torch.arange(len(position) + 1, dtype=torch.int32, device=position.device)
        self._starts = self._queries * length
        self._filled = (position + 1).int()

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """(A, Q, D) from queries (A, Q, D) and (A, L, K, D) keys and values."""
        mixed: Tensor = torch.ops.aten._flash_attention_forward(
            query,
            keys.flatten(0, 1),
            values.flatten(0, 1),
            self._queries,
            self._starts,
            1,
            self._span,
            0.0,
            False,
            False,
            scale=scale,
            window_size_left=-1,
            window_size_right=-1,
            seqused_k=self._filled,
        )[0]
        return mixed


def can_flash(model: PreTrainedModel) -> bool:
    """Whether the flash kernel takes this model: half precision on a CUDA device of compute capability 8 or more."""
    attention = _first_attention(model)
    weight = attention.k_proj.weight
    if not weight.is_cuda or weight.dtype not in (torch.bfloat16, torch.float16):
        return False
    head = attention.head_dim
    return torch.cuda.get_device_capability(weight.device)[0] >= 8 and head % 8 == 0 and head <= 256


def _first_attention(model: PreTrainedModel) -> Any:
    body: Any = model.base_model
    return body.layers[0].self_attn


def _norm(module: Any, hidden: Tensor) -> Tensor:
    """The family's RMS norm in one kernel where torch has it."""
    return functional.rms_norm(hidden, module.weight.shape, module.weight, module.variance_epsilon)


def _rotation(cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """(A, 1, D) factors such that x * cosine + roll(x, D / 2) * sine turns x: the first half's sign is in the sine."""
    half = sine.shape[-1] // 2
    return cosine, torch.cat([-sine[..., :half], sine[..., half:]], dim=-1)


def _project(attention: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (A, Q, D) and keys (A, K, D), turned by their position, and values (A, K, D)."""
    size = attention.head_dim
    query = attention.q_proj(hidden).unflatten(-1, (-1, size))
    key = attention.k_proj(hidden).unflatten(-1, (-1, size))
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    both = torch.cat([query, key], dim=1)
    cosine, sine = rotation
    turned = torch.addcmul(both * cosine, both.roll(size // 2, dims=-1), sine)
    value = attention.v_proj(hidden).unflatten(-1, (-1, size))
    return turned[:, : query.shape[1]], turned[:, query.shape[1] :], value
