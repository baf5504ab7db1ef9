"""Where the time of a 1.5B-shaped model goes: SFT throughput, one GRPO step by phases, ceilings and floor beside them.

    python -m benchmarks.gpu.speed --out DIR [--groups ceilings,sft,decode,grpo,profile,compiled] [--toy]

Random weights of the published shape of Qwen2.5-Math-1.5B; response lengths with mean 400 and maximum 1024 after
prompts of 150 tokens. MFU counts the products of the tokens the model runs on (`bench.Work`: 6 per weight and token,
a prompt held once by a packed row once, causal attention, head on response positions only; no recomputation) against
the datasheet's dense bf16 rate; `of_measured` against the product timed here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from alignment_core.attention import Kernel
from alignment_core.batching import TokenSequence
from alignment_core.config import SamplingConfig
from alignment_core.engine import Engine
from alignment_core.epochs import batch_indices
from alignment_core.graph_decoding import resolve_decoding
from alignment_core.models import vocab_limit
from alignment_core.policy_gradient import train_grpo
from alignment_core.runs import MemoryRun
from alignment_core.sampling import build_requests, make_sampler
from alignment_core.sft import train_sft
from alignment_core.training_config import GRPOConfig, OptimizerConfig, SFTConfig
from benchmarks.gpu import common, kernels
from benchmarks.gpu.bench import (
    Bench,
    fixed_sampling,
    floor_seconds,
    make_examples,
    make_problems,
    open_bench,
    packed_work,
    padding,
    release,
    utilisation,
)
from benchmarks.gpu.phases import PhasedRun, attention_line

DEFAULT_GROUPS = ("ceilings", "sft", "decode", "grpo", "profile")
GRPO_STEPS = 3
WARM_UP = 2
"""Steps of fine-tuning that are not timed."""


def ceilings(bench: Bench) -> None:
    """A bf16 matrix product of 8192 cubed on random data, and a device-to-device copy, counted read plus written."""
    size, block = (256, 1 << 20) if bench.arguments.toy else (8192, 1 << 32)
    left, right = (torch.randn(size, size, device=bench.device).to(torch.bfloat16) for _ in range(2))
    seconds = _mean_seconds(bench, lambda: left @ right, 10)
    bench.matmul_flops = 2 * size**3 / seconds
    source = torch.randn(block // 4, device=bench.device)
    target = torch.empty_like(source)
    seconds = _mean_seconds(bench, lambda: target.copy_(source), 10)
    bench.copy_bytes = 2 * block / seconds
    bench.report.add(
        {"name": "ceilings", "matmul_tflops": bench.matmul_flops / 1e12, "copy_tb_s": bench.copy_bytes / 1e12}
    )


def _mean_seconds(bench: Bench, work: Callable[[], object], times: int) -> float:
    for _ in range(3):
        work()
    watch = common.Stopwatch(bench.device)
    for _ in range(times):
        work()
    return watch.lap().seconds / times


def sft(bench: Bench) -> None:
    """Throughput of the SFT loop over packed rows of 8k and 16k tokens, by the kernel the core picks.

    At 16k beside it: with recomputation, padded, and by every other kernel that runs here.
    """
    small, large = _budgets(bench)
    _sft_row(bench, f"sft {small} tokens a micro-batch", micro_batch_tokens=small)
    _sft_row(bench, f"sft {large} tokens a micro-batch", micro_batch_tokens=large)
    name = f"sft {large} tokens a micro-batch, "
    _sft_row(bench, name + "recomputed activations", micro_batch_tokens=large, recompute_activations=True)
    _sft_row(bench, name + "padded", micro_batch_tokens=large, attention="padded")
    picked = kernels.chosen(bench.device, bench.dtype)
    for kernel, reason in kernels.absent(bench.device, bench.dtype).items():
        if reason is not None:
            bench.report.add({"name": f"{name}kernel {kernel}", "absent": reason})
        elif kernel != picked:
            _sft_row(bench, f"{name}kernel {kernel}", kernel, micro_batch_tokens=large)


def compiled(bench: Bench) -> None:
    """The same with compiled layers, compilation in the steps that are not timed; the model stays compiled."""
    _, large = _budgets(bench)
    _sft_row(bench, f"sft {large} tokens a micro-batch, compiled", micro_batch_tokens=large, compile=True)


def _budgets(bench: Bench) -> tuple[int, int]:
    return (128, 256) if bench.arguments.toy else (8_192, 16_384)


def _sft_row(bench: Bench, name: str, kernel: Kernel | None = None, **engine: Any) -> None:
    steps, batch = (3, 8) if bench.arguments.toy else (6, 128)
    examples = make_examples(bench, steps * batch)
    config = SFTConfig(epochs=1, batch_size=batch, optimizer=OptimizerConfig(learning_rate=1e-6), **engine)
    run, watch = MemoryRun(), common.Stopwatch(bench.device)
    with kernels.forced(kernel):
        train_sft(bench.model, bench.tokenizer, examples, config, run, bench.arguments.seed, bench.dtype)
    peak = watch.lap().peak_gib
    release(bench)
    timed = run.points[WARM_UP:]
    seconds = sum(metrics["time/update"] for _, metrics in timed)
    batches = [
        [examples[row] for row in batch_indices(len(examples), batch, step - 1, bench.arguments.seed)]
        for step, _ in timed
    ]
    # The same useful work whichever way it is done: padding is none.
    flops = 3 * sum(packed_work(part, config.micro_batch_tokens).forward_flops(bench) for part in batches)
    row: dict[str, object] = {
        "name": name,
        "attention": attention_line(run.lines),
        "tokens_per_second": sum(item.length for part in batches for item in part) / seconds,
        "seconds_per_step": seconds / len(timed),
        "peak_gib": peak,
    }
    if config.attention == "padded":
        row["padding_share"] = padding(batches[0], config.micro_batch_tokens)
    bench.report.add(row | utilisation(bench, flops, seconds))


def decode(bench: Bench) -> None:
    """Seconds per decode step with 256 rows alive: the difference of two calls that differ in their length only."""
    rows, short, more = (8, 4, 8) if bench.arguments.toy else (256, 32, 96)
    requested = fixed_sampling(bench, short)
    sampler = make_sampler(bench.model, bench.tokenizer, requested, bench.dtype)
    requests = build_requests(make_problems(bench, rows), bench.tokenizer, 1, 0, "decode")
    # The long call first: what is made once per cache length and batch size is made here.
    sampler.sample(requests, fixed_sampling(bench, short + more))
    sampler.sample(requests, fixed_sampling(bench, short))
    watch = common.Stopwatch(bench.device)
    sampler.sample(requests, fixed_sampling(bench, short))
    first = watch.lap()
    sampler.sample(requests, fixed_sampling(bench, short + more))
    second = watch.lap()
    step = (second.seconds - first.seconds) / more
    decoding = resolve_decoding(requested.decoding, bench.model)
    row = {
        "name": f"decode step, {rows} rows",
        "decoding": decoding,
        "milliseconds": 1000 * step,
        "tokens_per_second": rows / step,
    }
    floor = 2000.0 * bench.weights / bench.copy_bytes
    bench.report.add(row | {"weights_floor_milliseconds": floor, "peak_gib": second.peak_gib})
    release(bench)


def grpo(bench: Bench) -> None:
    """Steps of 32 x 8 completions; the last is reported, the others warm up. Then the log-prob pass alone."""
    group, count = (4, 8) if bench.arguments.toy else (8, 256)
    budget = 256 if bench.arguments.toy else bench.arguments.micro_batch_tokens
    _let_texts_end(bench)
    sampling = SamplingConfig(max_tokens=bench.longest, batch_size=count)
    run = PhasedRun(bench.device, make_sampler(bench.model, bench.tokenizer, sampling, bench.dtype))
    config = GRPOConfig(
        n_grpo_steps=GRPO_STEPS, rollout_batch_size=count, train_batch_size=count, group_size=group,
        micro_batch_tokens=budget, optimizer=OptimizerConfig(learning_rate=1e-7), validate_every=1000,
        recompute_activations=bench.arguments.recompute_activations,
    )  # fmt: skip
    watch = common.Stopwatch(bench.device)
    train_grpo(
        bench.model, bench.tokenizer, make_problems(bench, count // group), config, sampling, run.grade, run, 0,
        bench.dtype, sampler=run,
    )  # fmt: skip
    call = watch.lap().seconds
    _grpo_rows(bench, run, budget)
    _whole_step(bench, run, budget, call, resolve_decoding(sampling.decoding, bench.model))
    release(bench)
    _log_prob_row(bench, run.sequences, config)
    release(bench)


def _let_texts_end(bench: Bench) -> None:
    """Make so many ids end a text that evenly drawn tokens give the planned mean length under the cap."""
    low, high = float(bench.mean), 4.0 * bench.mean
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * (1 - math.exp(-bench.longest / middle)) < bench.mean else (low, middle)
    size = vocab_limit(bench.tokenizer)
    bench.model.config.eos_token_id = list(range(0, size, round(low)))


def _log_prob_row(bench: Bench, sequences: Sequence[TokenSequence], config: GRPOConfig) -> None:
    """The forward pass that scores old log-probs when a rollout serves several updates."""
    engine = Engine(bench.model, bench.tokenizer, config, bench.dtype)
    watch = common.Stopwatch(bench.device)
    with torch.no_grad():
        for _, batch in engine.micro_batches(sequences):
            engine.scores(batch, with_entropy=True)
    span = watch.lap()
    flops = packed_work(sequences, config.micro_batch_tokens).forward_flops(bench)
    floor = floor_seconds(bench, sequences, config.micro_batch_tokens)["log_probs"]
    row = {"name": "grpo log_probs", "seconds": span.seconds, "peak_gib": span.peak_gib, "floor_seconds": floor}
    bench.report.add(row | utilisation(bench, flops, span.seconds))


def _grpo_rows(bench: Bench, run: PhasedRun, budget: int) -> None:
    """A row for each phase of the last step."""
    floor = floor_seconds(bench, run.sequences, budget)
    metrics = run.points[-1][1]
    for name, span in run.steps[-1].spans.items():
        row: dict[str, object] = {"name": f"grpo {name}", "seconds": span.seconds, "peak_gib": span.peak_gib}
        row["floor_seconds"] = floor.get(name)
        if name == "grade":
            row["seconds_beside_sampling"] = metrics["time/grade_overlapped"]
        if name == "update":
            row["attention"] = attention_line(run.lines)
            row |= utilisation(bench, 3 * packed_work(run.sequences, budget).forward_flops(bench), span.seconds)
        bench.report.add(row)


def _whole_step(bench: Bench, run: PhasedRun, budget: int, call: float, decoding: str) -> None:
    """The last step in one row; `loop` is what the loop says of it by its own clock, `call` all of training."""
    step, metrics = run.steps[-1], run.points[-1][1]
    lengths = [len(item.response_ids) for item in run.sequences]
    floor = floor_seconds(bench, run.sequences, budget)
    bench.report.add(
        {
            "name": "grpo whole step",
            "seconds": step.seconds,
            "floor_seconds": sum(floor.get(name, 0.0) for name in step.spans),
            "phases": {name: span.seconds for name, span in step.spans.items()},
            "loop": {name: value for name, value in metrics.items() if name.startswith("time/")},
            "seconds_of_steps": [one.seconds for one in run.steps],
            "seconds_of_call": call,
            "completions": len(lengths),
            "mean_length": sum(lengths) / len(lengths),
            "longest": max(lengths),
            "decoding": decoding,
            "milliseconds_per_decode_step": 1000 * step.spans["generate"].seconds / max(lengths),
            "sampler_gap": metrics.get("train/sampler_gap"),
        }
    )


def profiles(bench: Bench) -> None:
    """Top kernels of an SFT step and of 16 decode steps, with the share of wall time the device was busy."""
    count, tokens = (4, 4) if bench.arguments.toy else (64, 16)
    examples = make_examples(bench, count)
    config = SFTConfig(epochs=1, batch_size=count, micro_batch_tokens=16_384)
    _profile_row(
        bench,
        "profile sft step",
        lambda: train_sft(bench.model, bench.tokenizer, examples, config, MemoryRun(), 0, bench.dtype),
    )
    release(bench)
    rows = 8 if bench.arguments.toy else 256
    sampler = make_sampler(bench.model, bench.tokenizer, fixed_sampling(bench, tokens), bench.dtype)
    requests = build_requests(make_problems(bench, rows), bench.tokenizer, 1, 0, "profile")
    sampler.sample(requests, fixed_sampling(bench, tokens))
    _profile_row(
        bench,
        f"profile prefill and {tokens} decode steps",
        lambda: sampler.sample(requests, fixed_sampling(bench, tokens)),
    )


def _profile_row(bench: Bench, name: str, work: Callable[[], object]) -> None:
    on_gpu = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    watch = common.Stopwatch(bench.device)
    with profile(activities=activities) as trace:
        work()
        seconds = watch.lap().seconds
    quantity = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kind = "CUDA" if on_gpu else "CPU"
    # An operator's event repeats the time of its kernels' events, and an annotation's that of all it spans.
    events = [item for item in trace.key_averages() if item.device_type.name == kind and not item.is_user_annotation]
    events.sort(key=lambda event: -getattr(event, quantity))
    busy = sum(getattr(event, quantity) for event in events) / 1e6
    top = [
        {"kernel": event.key[:120], "milliseconds": getattr(event, quantity) / 1000, "calls": event.count}
        for event in events[:14]
    ]
    for line in top[:8]:
        print(f"  {line['milliseconds']:9.2f} ms {line['calls']:6d} x {line['kernel'][:90]}", flush=True)
    bench.report.add({"name": name, "seconds": seconds, "busy_seconds": busy, "top": top})


def main() -> None:
    """Run the groups asked for, in order, while time is left."""
    parser = common.base_parser(__doc__, 300.0)
    parser.add_argument("--groups", default=",".join(DEFAULT_GROUPS), help="in order; compiled too, as the last")
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384, help="of the GRPO update")
    parser.add_argument("--recompute-activations", action="store_true", help="in the GRPO update")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    arguments = parser.parse_args()
    arguments.dtype = arguments.dtype or ("float32" if arguments.toy else "bfloat16")
    clock = common.Clock(arguments.budget_seconds)
    origin = common.provenance(common.device_from(arguments), arguments.git_sha)
    bench = open_bench(arguments, common.Report(arguments.out / "speed.json", origin), clock)
    groups = {"ceilings": ceilings, "sft": sft, "decode": decode, "grpo": grpo, "profile": profiles}
    groups["compiled"] = compiled
    for name in arguments.groups.split(","):
        if clock.left <= 0:
            bench.report.add({"name": name, "skipped": "the budget was spent"})
            continue
        groups[name](bench)
        bench.report.put(f"seconds/{name}", round(clock.spent, 1))


if __name__ == "__main__":
    main()
