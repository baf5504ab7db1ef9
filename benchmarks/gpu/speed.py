"""Where the time of a 1.5B-shaped model goes: SFT throughput, one GRPO step by phases, ceilings and floor beside them.

    python -m benchmarks.gpu.speed --out DIR [--groups ceilings,sft,decode,grpo,profile] [--toy]

Random weights of the published shape of Qwen2.5-Math-1.5B; response lengths with mean 400 and maximum 1024 after
prompts of 150 tokens. MFU counts the model's own products (6 per weight and token, causal attention, head on response
positions only; no recomputation) against the datasheet's dense bf16 rate; `of_measured` against the product timed here.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from alignment_core.batching import TokenSequence, collate, micro_batches
from alignment_core.config import SamplingConfig
from alignment_core.logprobs import response_log_probs
from alignment_core.models import autocast, set_checkpointing, vocab_limit
from alignment_core.policy_gradient import train_grpo
from alignment_core.records import Completion, GradedResponse
from alignment_core.rewards import grade_batch
from alignment_core.runs import MemoryRun
from alignment_core.sampling import Progress, PromptRequest, Sampler, build_requests, make_sampler
from alignment_core.sft import train_sft
from alignment_core.training_config import GRPOConfig, OptimizerConfig, SFTConfig
from benchmarks.gpu import common
from benchmarks.gpu.bench import (
    Bench,
    fixed_sampling,
    floor_seconds,
    forward_flops,
    make_examples,
    make_problems,
    open_bench,
    padding,
    release,
    utilisation,
)

GROUPS = ("ceilings", "sft", "decode", "grpo", "profile")
GRPO_STEPS = 3


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
    """Throughput of the SFT loop at 8k and 16k padded tokens per micro-batch, and at 16k with recomputation."""
    budgets = (256, 512) if bench.arguments.toy else (8_192, 16_384)
    for budget in budgets:
        _sft_row(bench, budget, checkpointing=False)
    _sft_row(bench, budgets[-1], checkpointing=True)


def _sft_row(bench: Bench, budget: int, checkpointing: bool) -> None:
    steps, batch = (3, 8) if bench.arguments.toy else (6, 128)
    examples = make_examples(bench, steps * batch)
    config = SFTConfig(
        epochs=1, batch_size=batch, micro_batch_tokens=budget, optimizer=OptimizerConfig(learning_rate=1e-6)
    )
    set_checkpointing(bench.model, checkpointing)
    run, watch = MemoryRun(), common.Stopwatch(bench.device)
    train_sft(bench.model, bench.tokenizer, examples, config, run, bench.arguments.seed, bench.dtype)
    peak = watch.lap().peak_gib
    set_checkpointing(bench.model, False)
    release(bench)
    points = [metrics for _, metrics in run.points[2:]]
    seconds = sum(point["time/update"] for point in points)
    # Steps are drawn from one distribution: the share of the steps that are timed stands for their work.
    share = sum(point["train/tokens"] for point in points) / sum(len(item.response_ids) for item in examples)
    tokens = share * sum(item.length for item in examples)
    flops = 3 * share * forward_flops(bench.model, examples)
    bench.report.add(
        {
            "name": f"sft {budget} tokens a micro-batch" + (", checkpointing" if checkpointing else ""),
            "tokens_per_second": tokens / seconds,
            "seconds_per_step": seconds / len(points),
            "padding_share": padding(examples[:batch], budget),
            "peak_gib": peak,
        }
        | utilisation(bench, flops, seconds)
    )


def decode(bench: Bench) -> None:
    """Seconds per decode step with 256 rows alive: the difference of two calls that differ in their length only."""
    rows, short, more = (8, 4, 8) if bench.arguments.toy else (256, 32, 96)
    sampler = make_sampler(bench.model, bench.tokenizer, fixed_sampling(bench, short), bench.dtype)
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
    row = {"name": f"decode step, {rows} rows", "milliseconds": 1000 * step, "tokens_per_second": rows / step}
    floor = 2000.0 * bench.weights / bench.copy_bytes
    bench.report.add(row | {"weights_floor_milliseconds": floor, "peak_gib": second.peak_gib})
    release(bench)


class PhasedRun(MemoryRun):
    """Splits each step of the loop at its own seams: sampler, grader and record are this object's."""

    def __init__(self, device: torch.device, sampler: Sampler) -> None:
        super().__init__()
        self.spans: list[dict[str, common.Span]] = []
        self.rollout: list[Completion] = []
        self._sampler, self._watch = sampler, common.Stopwatch(device)
        self._now: dict[str, common.Span] = {}

    def update_weights(self, model: PreTrainedModel) -> None:
        """The loop's first act of a step."""
        self._watch.restart()
        self._sampler.update_weights(model)
        self._now["sync"] = self._watch.lap()

    def sample(
        self, requests: Sequence[PromptRequest], config: SamplingConfig, on_progress: Progress | None = None
    ) -> list[Completion]:
        """Timed sampling; the completions are kept."""
        self.rollout = self._sampler.sample(requests, config, on_progress)
        self._now["generate"] = self._watch.lap()
        return self.rollout

    def grade(self, responses: Sequence[str], ground_truths: Sequence[str]) -> list[GradedResponse]:
        """Timed grading. Noise text is never right, so the rewards that train are arbitrary: every other one is 1."""
        grades = grade_batch(responses, ground_truths, "r1_zero")
        self._now["grade"] = self._watch.lap()
        return [grade.model_copy(update={"reward": float(index % 2)}) for index, grade in enumerate(grades)]

    def emit(self, step: int, metrics: Mapping[str, float], total: int | None = None) -> None:
        """The end of a step."""
        self._now["update"] = self._watch.lap()
        self.spans.append(self._now)
        self._now = {}
        super().emit(step, metrics, total)


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
    )  # fmt: skip
    train_grpo(
        bench.model, bench.tokenizer, make_problems(bench, count // group), config, sampling, run.grade, run, 0,
        bench.dtype, sampler=run,
    )  # fmt: skip
    sequences = [TokenSequence(item.prompt_ids, item.response_ids) for item in run.rollout]
    run.spans[-1]["log_probs"] = _log_prob_pass(bench, sequences, budget)
    _grpo_rows(bench, sequences, run.spans, run.points[-1][1].get("train/sampler_gap"))
    release(bench)


def _let_texts_end(bench: Bench) -> None:
    """Make so many ids end a text that evenly drawn tokens give the planned mean length under the cap."""
    low, high = float(bench.mean), 4.0 * bench.mean
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * (1 - math.exp(-bench.longest / middle)) < bench.mean else (low, middle)
    size = vocab_limit(bench.tokenizer)
    bench.model.config.eos_token_id = list(range(0, size, round(low)))


def _log_prob_pass(bench: Bench, sequences: Sequence[TokenSequence], budget: int) -> common.Span:
    """The forward pass that scores old log-probs when a rollout serves several updates."""
    watch = common.Stopwatch(bench.device)
    with torch.no_grad():
        for rows in micro_batches([item.length for item in sequences], budget):
            batch = collate([sequences[row] for row in rows], 0, bench.device)
            with autocast(bench.device, bench.dtype):
                response_log_probs(bench.model, batch, 1.0, True, vocab_limit=vocab_limit(bench.tokenizer))
    return watch.lap()


def _grpo_rows(
    bench: Bench, sequences: Sequence[TokenSequence], steps: Sequence[Mapping[str, common.Span]], gap: float | None
) -> None:
    spans = steps[-1]
    floor = floor_seconds(bench, sequences)
    forward = forward_flops(bench.model, sequences)
    for name, span in spans.items():
        row: dict[str, object] = {"name": f"grpo {name}", "seconds": span.seconds, "peak_gib": span.peak_gib}
        row["floor_seconds"] = floor.get(name)
        if name in ("update", "log_probs"):
            row |= utilisation(bench, forward * (3 if name == "update" else 1), span.seconds)
        bench.report.add(row)
    lengths = [len(item.response_ids) for item in sequences]
    parts = ("sync", "generate", "grade", "update")
    bench.report.add(
        {
            "name": "grpo whole step",
            "seconds": sum(spans[name].seconds for name in parts),
            "floor_seconds": sum(floor.get(name, 0.0) for name in parts),
            "completions": len(lengths),
            "mean_length": sum(lengths) / len(lengths),
            "longest": max(lengths),
            "seconds_of_steps": [sum(step[name].seconds for name in parts) for step in steps],
            "milliseconds_per_decode_step": 1000 * spans["generate"].seconds / max(lengths),
            "sampler_gap": gap,
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
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384, help="of the GRPO update")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    arguments = parser.parse_args()
    arguments.dtype = arguments.dtype or ("float32" if arguments.toy else "bfloat16")
    clock = common.Clock(arguments.budget_seconds)
    origin = common.provenance(common.device_from(arguments), arguments.git_sha)
    bench = open_bench(arguments, common.Report(arguments.out / "speed.json", origin), clock)
    groups = {"ceilings": ceilings, "sft": sft, "decode": decode, "grpo": grpo, "profile": profiles}
    for name in arguments.groups.split(","):
        if clock.left <= 0:
            bench.report.add({"name": name, "skipped": "the budget was spent"})
            continue
        groups[name](bench)
        bench.report.put(f"seconds/{name}", round(clock.spent, 1))


if __name__ == "__main__":
    main()
