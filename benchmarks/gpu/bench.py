"""What the speed proof measures on and against: the model with its sizes, made-up work, and the least time it takes."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import TokenSequence, micro_batches, pack, packed_batches
from alignment_core.config import SamplingConfig
from alignment_core.models import ComputeDtype, vocab_limit
from alignment_core.records import Problem
from benchmarks.gpu import common

DATASHEET_FLOPS = 989e12
"""Dense bf16 of the H100/H200 SXM parts."""
ADAMW_BYTES = 30
"""Per weight: gradient read for the norm and the step, weight and moments read and written (fp32), with slack."""


@dataclass
class Bench:
    """The model and sizes every group works on."""

    arguments: argparse.Namespace
    device: torch.device
    report: common.Report
    clock: common.Clock
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt: int
    mean: int
    longest: int
    matmul_flops: float = DATASHEET_FLOPS
    copy_bytes: float = 4.8e12

    @property
    def dtype(self) -> ComputeDtype:
        """Compute type of trainer and sampler."""
        return self.arguments.dtype

    @property
    def weights(self) -> int:
        """All weights, the tied head once."""
        return sum(weight.numel() for weight in self.model.parameters())


def open_bench(arguments: argparse.Namespace, report: common.Report, clock: common.Clock) -> Bench:
    """Random weights on the device, a tokenizer of words, and the lengths of the plan (tiny under --toy)."""
    device = common.device_from(arguments)
    shape = common.small_shape(1024, 128, 2) if arguments.toy else common.shape_1_5b()
    size = 1000 if arguments.toy else 151_665
    model = common.random_model(shape, device, arguments.seed)
    prompt, mean, longest = (12, 16, 40) if arguments.toy else (150, 400, 1024)
    bench = Bench(arguments, device, report, clock, model, common.word_tokenizer(size), prompt, mean, longest)
    report.put("model", {"weights": bench.weights, "dtype": arguments.dtype, "vocab_limit": size})
    return bench


@dataclass(frozen=True)
class Work:
    """What one pass over packed rows runs on."""

    tokens: int
    """In the rows: a prompt that sequences of a row share counts once; the last token of each is never run."""
    squares: int
    """Sum of squared sequence lengths, as attention sees them."""
    predictions: int
    """Response tokens."""

    def forward_flops(self, bench: Bench) -> float:
        """Matrix products of a forward pass: 2 per weight of a layer and token, causal attention, 2 per weight of the
        head, its padding cut off, and response token. A backward pass has twice that; recomputation is not work.
        """
        shape = bench.model.config
        body = sum(m.weight.numel() for m in bench.model.base_model.modules() if isinstance(m, nn.Linear))
        attention = 2.0 * shape.num_hidden_layers * shape.hidden_size * self.squares
        head = 2.0 * vocab_limit(bench.tokenizer) * shape.hidden_size * self.predictions
        return 2.0 * body * self.tokens + attention + head


def packed_work(sequences: Sequence[TokenSequence], budget: int) -> Work:
    """The work of one optimizer batch, in the rows of `budget` tokens that the loops make of it."""
    rows = [pack([sequences[index] for index in part]) for part in packed_batches(sequences, budget)]
    return Work(
        sum(row.input_ids.numel() for row in rows),
        sum(length**2 for row in rows for length in row.layout.lengths),
        sum(len(row.predictors) for row in rows),
    )


def floor_seconds(bench: Bench, sequences: Sequence[TokenSequence], budget: int) -> dict[str, float]:
    """Least time of each phase of a GRPO step at the measured ceilings, activations kept (no recomputation)."""
    shape, rows = bench.model.config, [(len(item.prompt_ids), len(item.response_ids)) for item in sequences]
    key_value = (
        2 * 2 * shape.num_hidden_layers * shape.num_key_value_heads * (shape.hidden_size // shape.num_attention_heads)
    )
    cache = sum(key_value * (prompt * new + new * (new + 1) / 2) for prompt, new in rows)
    weights = 2.0 * bench.weights * max(new for _, new in rows)
    forward = packed_work(sequences, budget).forward_flops(bench)
    return {
        "generate": (weights + cache) / bench.copy_bytes,
        "log_probs": forward / bench.matmul_flops,
        "update": 3 * forward / bench.matmul_flops + ADAMW_BYTES * bench.weights / bench.copy_bytes,
        "sync": 6.0 * bench.weights / bench.copy_bytes,
    }


def utilisation(bench: Bench, flops: float, seconds: float) -> dict[str, float]:
    """Rate of the work, beside the datasheet's and the one measured here."""
    rate = flops / seconds
    return {"tflops": rate / 1e12, "mfu": rate / DATASHEET_FLOPS, "of_measured": rate / bench.matmul_flops}


def padding(examples: Sequence[TokenSequence], budget: int) -> float:
    """Share of the positions of padded micro-batches that hold no token."""
    lengths = [item.length for item in examples]
    padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in micro_batches(lengths, budget))
    return 1 - sum(lengths) / padded


def make_examples(bench: Bench, count: int) -> list[TokenSequence]:
    """Random prompts and responses of the planned lengths."""
    lengths = common.gamma_lengths(count, bench.mean, bench.longest, bench.arguments.seed)
    return common.random_sequences([bench.prompt] * count, lengths, vocab_limit(bench.tokenizer), bench.arguments.seed)


def fixed_sampling(bench: Bench, tokens: int) -> SamplingConfig:
    """Exactly `tokens` tokens per row: nothing ends a response before."""
    return SamplingConfig(max_tokens=tokens, min_tokens=tokens, batch_size=256)


def make_problems(bench: Bench, count: int) -> list[Problem]:
    """Problems whose prompts are random words."""
    sequences = common.random_sequences([bench.prompt] * count, [0] * count, vocab_limit(bench.tokenizer) - 1, 5)
    texts = [" ".join(f"w{id_}" for id_ in item.prompt_ids) for item in sequences]
    return [Problem(id=f"p{i}", question="", prompt=text, ground_truth="1") for i, text in enumerate(texts)]


def release(bench: Bench) -> None:
    """Free gradients and cached memory."""
    bench.model.zero_grad(set_to_none=True)
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
