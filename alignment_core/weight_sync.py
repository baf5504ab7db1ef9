"""The trainer's weights into a running vllm engine, in memory, and the proof that they arrived.

The engine keeps weights in layouts of its own (fused projections, packed matrices), so they cannot be compared one by
one. What is compared is what they are for: the log-probs of a fixed text, the engine's against the trainer's.
"""

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import TokenSequence, collate
from alignment_core.failures import MemberError
from alignment_core.logprobs import response_log_probs
from alignment_core.models import ComputeDtype, autocast, device_of
from alignment_core.vllm_engine import Engine, import_vllm

PROBE_TEXT = "Tom has 17 apples and buys 25 more. 17 + 25 = 42, so he has 42 apples. <answer> 42 </answer>"
PROBE_TOKENS = 64
EXACT = 1e-3
"""Mean absolute difference, nats per token, that is allowed in float32."""
ROUNDINGS = 6.0
"""In bfloat16, how many times the trainer's own rounding (its bfloat16 against its float32) is allowed: the engine
rounds at other places, and what lies between its layers too."""
_numbers = itertools.count()


def sync_weights(engine: Engine, model: PreTrainedModel) -> None:
    """Copy `model`'s present weights into the engine, in the engine's type, and forget what was cached of the old ones.

    Raises MemberError if the cache of prompts cannot be emptied.
    """
    with engine.device(), torch.no_grad():
        # What no checkpoint holds (rotary tables, a tied head) is reported as missing, at every sync.
        logging.getLogger("vllm.model_executor.model_loader.reload").setLevel(logging.ERROR)
        arguments = {"weights_iterator": named_weights(model, engine.vocab_size, engine.dtype)}
        engine.llm.collective_rpc("reload_weights", kwargs=arguments)
        engine.llm.apply_model(_repack_tied_head)
        emptied = engine.llm.reset_prefix_cache() or engine.llm.reset_prefix_cache(reset_running_requests=True)
    if not emptied:
        raise MemberError(
            "vllm kept the cache of prompts under old weights after a weight sync: run again, or take "
            "sampling.backend transformers"
        )


def named_weights(model: PreTrainedModel, vocab_size: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its checkpoint name, a tied one once; embedding and head up to the engine's vocabulary."""
    tables = [model.get_input_embeddings().weight, *model.get_output_embeddings().parameters()]
    for name, weight in model.named_parameters():
        is_table = any(weight is table for table in tables)
        yield name, (weight.detach()[:vocab_size] if is_table else weight.detach()).to(dtype)


def check_sync(
    engine: Engine,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    compute_dtype: ComputeDtype,
    tolerance: float | None = None,
) -> float:
    """Mean absolute difference (nats per token) of a fixed text's log-probs, engine against trainer.

    Raises MemberError if it exceeds `tolerance` (None: what rounding explains), or is not finite: then the engine
    would sample from another policy than the one that trains.
    """
    ids = probe_ids(tokenizer, engine)
    ours = _trainer_log_probs(model, ids, engine.vocab_size, compute_dtype)
    gap = _mean_difference(ours, _engine_log_probs(engine, ids))
    allowed = tolerance
    if allowed is None:
        exact = ours if compute_dtype == "float32" else _trainer_log_probs(model, ids, engine.vocab_size, "float32")
        allowed = max(EXACT, ROUNDINGS * _mean_difference(ours, exact))
    if not gap <= allowed:
        raise MemberError(
            f"after a weight sync vllm's log-probs differ from the trainer's by {gap:.3g} nats per token (allowed: "
            f"{allowed:.3g}): it holds other weights than the trainer, or computes {type(model).__name__} otherwise. "
            "Take sampling.backend transformers; if you know the difference to be rounding, set "
            "sampling.vllm.sync_tolerance above it"
        )
    return gap


def _mean_difference(first: list[float], second: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)


def probe_ids(tokenizer: PreTrainedTokenizerBase, engine: Engine) -> list[int]:
    """The text that is compared: at least two tokens, known to the engine, within its positions."""
    encoded = tokenizer.encode(PROBE_TEXT, add_special_tokens=False)
    ids = [id_ for id_ in encoded if id_ < engine.vocab_size] or [0]
    return (ids * 2)[: max(min(len(ids), PROBE_TOKENS, engine.positions - 1), 2)]


def _trainer_log_probs(
    model: PreTrainedModel, ids: list[int], vocab_size: int, compute_dtype: ComputeDtype
) -> list[float]:
    batch = collate([TokenSequence(ids[:1], ids[1:])], pad_id=0, device=device_of(model))
    with torch.no_grad(), autocast(device_of(model), compute_dtype):
        scores = response_log_probs(model, batch, vocab_limit=vocab_size)
    values: list[float] = scores.log_probs[batch.response_mask].tolist()
    return values


def _engine_log_probs(engine: Engine, ids: list[int]) -> list[float]:
    """Log-probs of `ids` after the first, each given those before."""
    vllm = import_vllm()
    kind = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
    params = vllm.SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, ignore_eos=True, output_kind=kind
    )
    with engine.device():
        engine.llm.add_request(f"probe-{next(_numbers)}", {"prompt_token_ids": ids}, params)
        done: list[Any] = []
        while not done:
            done = [output for output in engine.llm.step() if output.finished]
    return [row[id_].logprob for id_, row in zip(ids[1:], done[0].prompt_logprobs[1:], strict=True)]


def _repack_tied_head(model: nn.Module) -> None:
    """Have a head that shares the embedding's weight see the new one: on a CPU it keeps a packed copy of its own, which
    the reload of the embedding does not reach. Elsewhere there is nothing to repack."""
    head = getattr(model, "lm_head", None)
    method = getattr(head, "quant_method", None)
    if method is not None and head is not None:
        method.process_weights_after_loading(head)
