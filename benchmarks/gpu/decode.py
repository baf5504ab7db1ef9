"""Decoding by CUDA graphs: the same tokens as without them, and the time of a step.

    python -m benchmarks.gpu.decode --out DIR [--model FOLDER] [--rows 256 --tokens 1024 --prompt 150] [--toy]

Ways: `plain` is the transformers model with a growing cache; `static` the fixed cache without graphs; `graph` with
them. The last two run the same kernels, so they must agree to the bit. `plain` rounds elsewhere: in bfloat16 rows part
at the first draw that falls between two rounded distributions, so log-probs are compared on common beginnings.
On a CPU, `static` stands in for `graph`: that tries the script and proves nothing about speed.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.config import Decoding, SamplingConfig
from alignment_core.decode_step import FlashAttention, MaskedAttention
from alignment_core.models import ComputeDtype, load_model, load_tokenizer, vocab_limit
from alignment_core.records import Completion
from alignment_core.sampling import PromptRequest
from alignment_core.seeding import derive_seed
from alignment_core.transformers_sampler import TransformersSampler
from benchmarks.gpu import common

GROUP = 8
SHORT = 64
"""Tokens of the runs that the slow way takes part in."""
BOUNDS = {
    ("static", "float32"): 0.0, ("static", "bfloat16"): 0.0, ("plain", "float32"): 2e-3, ("plain", "bfloat16"): 1.0,
}  # fmt: skip
"""Largest difference of a log-prob, nats: none by the same kernels, else rounding, on tokens however unlikely."""
SHARPER = 6.0
"""A random head finds all words almost alike; times this, it prefers some, as a trained one does."""


@dataclass
class Bench:
    """What every measurement needs."""

    arguments: argparse.Namespace
    device: torch.device
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    report: common.Report
    clock: common.Clock

    @property
    def fast(self) -> Decoding:
        """The way on trial."""
        return "graph" if self.device.type == "cuda" else "static"

    def sampler(self, dtype: ComputeDtype) -> TransformersSampler:
        """A sampler of its own, so that ways do not share buffers."""
        return TransformersSampler(self.model, self.tokenizer, dtype)

    def sampling(self, way: Decoding, tokens: int) -> SamplingConfig:
        """Every row runs for exactly `tokens` tokens: no stop string, EOS banned."""
        rows = self.arguments.rows
        return SamplingConfig(max_tokens=tokens, min_tokens=tokens, stop=(), batch_size=rows, decoding=way)

    def requests(self, rows: int) -> list[PromptRequest]:
        """Groups of 8 rows with one prompt each, prompts of 0.5 to 1.5 times the usual length."""
        prompt, limit = self.arguments.prompt, vocab_limit(self.tokenizer) - 1
        lengths = [max(1, prompt // 2 + prompt * (index * 5 % 17) // 16) for index in range(-(-rows // GROUP))]
        prompts = common.random_sequences(lengths, [0] * len(lengths), limit, self.arguments.seed)
        return [
            PromptRequest(f"p{row // GROUP}", row % GROUP, prompts[row // GROUP].prompt_ids, derive_seed(0, row))
            for row in range(rows)
        ]


def attention(bench: Bench) -> None:
    """The flash kernel and plain attention against float64, on caches filled to different lengths."""
    if bench.device.type != "cuda":
        return
    shape = bench.model.config
    heads, groups = shape.num_key_value_heads, shape.num_attention_heads // shape.num_key_value_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    torch.manual_seed(bench.arguments.seed)
    for rows, length in ((4, 256), (64, 1280), (256, 1280)):
        states = torch.randn(2, rows, length, heads, size, device=bench.device).bfloat16()
        query = torch.randn(rows, heads * groups, size, device=bench.device).bfloat16()
        position = torch.randint(0, length, (rows,), device=bench.device)
        flash, masked = FlashAttention(position, length, length), MaskedAttention(position, length)
        exact = masked(query.double(), states[0].double(), states[1].double(), size**-0.5)
        for name, kernel in (("flash", flash), ("masked", masked)):
            error = common.relative_error(kernel(query, states[0], states[1], size**-0.5), exact)
            bench.report.add({"name": f"attention {name}, {rows} rows", "error": error, "pass": error < 1e-2})


def agreement(bench: Bench) -> None:
    """Graph against static (bit for bit) and against plain (up to rounding), in both types."""
    rows, tokens = min(64, bench.arguments.rows), min(SHORT, bench.arguments.tokens)
    requests = bench.requests(rows)
    dtypes: tuple[ComputeDtype, ...] = ("float32", "bfloat16")
    for dtype in dtypes:
        made = {}
        for way in (bench.fast, "static", "plain"):
            sampler = bench.sampler(dtype)
            # Twice: the second call replays what the first one recorded.
            for _ in range(2 if way == bench.fast else 1):
                made[way] = sampler.sample(requests, bench.sampling(way, tokens))
            del sampler
        for other in [way for way in made if way != bench.fast]:
            row = compare(made[bench.fast], made[other])
            bound = BOUNDS[other, dtype]
            same = row["max_log_prob_difference"] <= bound and (other == "plain" or row["rows_equal"] == 1)
            verdict = {"bound": bound, "pass": same}
            bench.report.add({"name": f"{bench.fast} vs {other}, {dtype}", **row, **verdict})


def compare(ours: Sequence[Completion], theirs: Sequence[Completion]) -> dict[str, float]:
    """Share of equal rows, of tokens in common beginnings, and the largest log-prob difference among those."""
    common_tokens, worst = 0, 0.0
    for one, other in zip(ours, theirs, strict=True):
        left, right = one.sampler_log_probs or [], other.sampler_log_probs or []
        for index in _common_beginning(one.response_ids, other.response_ids):
            common_tokens += 1
            worst = max(worst, abs(left[index] - right[index]))
    equal = sum(one.response_ids == other.response_ids for one, other in zip(ours, theirs, strict=True))
    total = sum(len(one.response_ids) for one in ours)
    return {
        "rows_equal": equal / len(ours),
        "tokens_in_common_beginnings": common_tokens / total,
        "max_log_prob_difference": worst,
        "mean_entropy": sum(one.mean_entropy or 0.0 for one in ours) / len(ours),
    }


def _common_beginning(one: Sequence[int], other: Sequence[int]) -> Iterator[int]:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return
        yield index


def speed(bench: Bench) -> None:
    """Milliseconds per step: the slow ways over few tokens, the fast one over few and over all."""
    rows, tokens = bench.arguments.rows, bench.arguments.tokens
    short = min(SHORT, tokens // 2)
    for size in sorted({rows, max(1, rows // 4), min(8, rows)}, reverse=True):
        requests = bench.requests(size)
        counts_by_way: dict[Decoding, tuple[int, ...]] = {"plain": (short,), "static": (short,)}
        for way, counts in (counts_by_way | {bench.fast: (short, tokens)}).items():
            sampler = bench.sampler("bfloat16")
            for count in counts:
                if bench.clock.left > 0:
                    bench.report.add(_timed(bench, sampler, requests, way, count))
            del sampler


def _timed(
    bench: Bench, sampler: TransformersSampler, requests: Sequence[PromptRequest], way: Decoding, tokens: int
) -> dict[str, object]:
    watch, seconds = common.Stopwatch(bench.device), {}
    for part, count in (("first call", tokens), ("prefill", 1), ("again", tokens)):
        watch.restart()
        sampler.sample(requests, bench.sampling(way, count))
        seconds[part] = watch.lap()
    step = (seconds["again"].seconds - seconds["prefill"].seconds) / (tokens - 1)
    return {
        "name": f"{way}, {len(requests)} rows, {tokens} tokens",
        "milliseconds_per_step": 1000 * step,
        "tokens_per_second": len(requests) / step,
        "seconds": seconds["again"].seconds,
        "first_call_seconds": seconds["first call"].seconds,
        "prefill_and_first_token_seconds": seconds["prefill"].seconds,
        "peak_gib": seconds["again"].peak_gib,
    }


def kernels(bench: Bench) -> None:
    """The kernels that steps without graphs spend their time in."""
    if bench.device.type != "cuda" or bench.clock.left <= 0:
        return
    sampler, requests = bench.sampler("bfloat16"), bench.requests(bench.arguments.rows)
    sampling = bench.sampling("static", 16)
    sampler.sample(requests, sampling)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        sampler.sample(requests, sampling)
    events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)[:25]
    total = sum(event.self_device_time_total for event in found.key_averages())
    top = [{"kernel": e.key[:90], "calls": e.count, "milliseconds": e.self_device_time_total / 1000} for e in events]
    bench.report.put("kernels", {"steps": 16, "device_milliseconds": total / 1000, "top": top})


def bench_of(arguments: argparse.Namespace) -> Bench:
    """Model, tokenizer and report as asked for."""
    device = common.device_from(arguments)
    if arguments.toy:
        arguments.rows, arguments.tokens, arguments.prompt = min(arguments.rows, 12), min(arguments.tokens, 24), 10
    report = common.Report(arguments.out / "decode.json", common.provenance(device, arguments.git_sha))
    clock = common.Clock(arguments.budget_seconds)
    if arguments.model:
        model, tokenizer = load_model(arguments.model, device=device), load_tokenizer(arguments.model)
        return Bench(arguments, device, model, tokenizer, report, clock)
    shape = common.small_shape(512, 128, 2) if arguments.toy else common.shape_1_5b()
    # A head tied to random embeddings would repeat its input.
    shape.tie_word_embeddings = False
    model = common.random_model(shape, device, arguments.seed)
    with torch.no_grad():
        weight: Tensor = model.get_output_embeddings().weight
        weight.mul_(SHARPER)
    return Bench(arguments, device, model, common.word_tokenizer(shape.vocab_size), report, clock)


def main() -> None:
    """Run every part; each writes its rows as it goes."""
    parser = common.base_parser(__doc__, budget=420)
    parser.add_argument("--model", help="folder in Hugging Face layout; default: random weights")
    parser.add_argument("--shape", choices=("qwen1.5b",), default="qwen1.5b", help="of random weights")
    for name, value in (("rows", 256), ("tokens", 1024), ("prompt", 150)):
        parser.add_argument(f"--{name}", type=int, default=value)
    bench = bench_of(parser.parse_args())
    for part in (attention, agreement, speed, kernels):
        part(bench)
    bench.report.put("seconds", bench.clock.spent)
    sys.exit(any(row.get("pass") is False for row in bench.report.rows))


if __name__ == "__main__":
    main()
