"""A real pretrained model learns: zero-shot, GRPO, SFT, and GRPO from SFT, judged on the same test problems.

    python -m benchmarks.gpu.learn --out DIR --model FOLDER --train gsm8k/train.jsonl --test gsm8k/test.jsonl \\
        --phases zero_shot,grpo --budget-seconds 520

Without --train and --test the problems are synthetic word problems. Each training phase takes its share of the time
that is left and stops in time for its evaluation. learn.json is complete after every step; completions lie beside it.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from alignment_core.config import ArithmeticConfig, DataConfig, SamplingConfig
from alignment_core.epochs import Validate
from alignment_core.graph_decoding import resolve_decoding
from alignment_core.models import load_model, load_tokenizer
from alignment_core.policy_gradient import train_grpo
from alignment_core.problems import prepare
from alignment_core.prompts import read_template
from alignment_core.sampling import encode_trace, make_sampler
from alignment_core.sft import train_sft
from alignment_core.training_config import GRPOConfig, OptimizerConfig, SFTConfig
from alignment_core.validation import make_validator
from benchmarks.gpu import common
from benchmarks.gpu.lab import Lab, copy_weights, judge, put_weights
from benchmarks.gpu.timed_run import OutOfTime, TimedRun

PHASES = ("zero_shot", "grpo", "sft", "sft_grpo")
SHARES = {"grpo": 3.0, "sft": 1.0, "sft_grpo": 2.0}
"""How the training phases divide the time that is left."""
MEANS = (
    "time/step", "time/sync", "time/generate", "time/grade", "time/grade_overlapped", "time/update",
    "train/tokens", "train/sampler_gap",
)  # fmt: skip
"""Metrics whose mean over the steps stands in a training phase's row."""


def zero_shot(lab: Lab, _: float) -> None:
    """The model as it came."""
    judge(lab, "zero_shot")


def sft(lab: Lab, seconds: float) -> None:
    """Supervised fine-tuning on the problems' own traces."""
    options = lab.arguments
    put_weights(lab, lab.base)
    traces = [problem for problem in lab.data.traces if problem.trace][: options.sft_examples]
    examples = [encode_trace(lab.tokenizer, problem.prompt, problem.trace or "") for problem in traces]
    config = SFTConfig(
        epochs=options.sft_epochs,
        batch_size=options.sft_batch,
        micro_batch_tokens=options.micro_batch_tokens,
        recompute_activations=options.recompute_activations,
        optimizer=OptimizerConfig(learning_rate=options.sft_learning_rate, schedule="cosine", warmup_steps=5),
        validate_every=options.sft_validate_every,
    )
    run = _run(lab, "sft", seconds)
    try:
        train_sft(lab.model, lab.tokenizer, examples, config, run, options.seed, lab.dtype, _validator(lab, run))
    except OutOfTime as stop:
        run.say(str(stop))
    lab.tuned = copy_weights(lab.model)
    _finish(lab, "sft", config.model_dump(), run)


def grpo(lab: Lab, seconds: float) -> None:
    """GRPO from the weights as they came."""
    put_weights(lab, lab.base)
    _grpo(lab, "grpo", seconds)


def sft_grpo(lab: Lab, seconds: float) -> None:
    """GRPO from the weights after SFT."""
    put_weights(lab, lab.tuned)
    _grpo(lab, "sft_grpo", seconds)


def _grpo(lab: Lab, phase: str, seconds: float) -> None:
    options = lab.arguments
    size = options.problems * options.group
    config = GRPOConfig(
        n_grpo_steps=options.steps,
        optimizer=OptimizerConfig(learning_rate=options.learning_rate),
        rollout_batch_size=size,
        train_batch_size=size,
        group_size=options.group,
        micro_batch_tokens=options.micro_batch_tokens,
        recompute_activations=options.recompute_activations,
        loss_type=options.loss_type,
        validate_every=options.validate_every,
    )
    run = _run(lab, phase, seconds)
    validate = _validator(lab, run)
    try:
        train_grpo(
            lab.model, lab.tokenizer, lab.data.train, config, lab.sampling, "r1_zero", run, options.seed, lab.dtype,
            validate, lab.sampler,
        )  # fmt: skip
    except OutOfTime as stop:
        run.say(str(stop))
    _finish(lab, phase, config.model_dump(), run)


def _run(lab: Lab, phase: str, seconds: float) -> TimedRun:
    print(f"{phase}: {seconds:.0f} s", flush=True)
    if lab.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return TimedRun(phase, lab.report, lab.clock, seconds)


def _validator(lab: Lab, run: TimedRun) -> Validate | None:
    options = lab.arguments
    return make_validator(
        lab.data.dev, options.dev, lab.tokenizer, lab.sampling, "r1_zero", run, options.seed, lab.dtype, lab.sampler
    )


def _finish(lab: Lab, phase: str, config: Mapping[str, object], run: TimedRun) -> None:
    """Free what the trainer held, note what was done, evaluate."""
    lab.model.eval()
    lab.model.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_allocated() / common.GIB if lab.device.type == "cuda" else None
    steps = run.points[-1][0] if run.points else 0
    timed = [point for _, point in run.points if "time/update" in point]
    means = {
        name: sum(point[name] for point in timed) / len(timed)
        for name in MEANS
        if timed and all(name in point for point in timed)
    }
    row = {"name": f"{phase} training", "kind": "training", "steps": steps, "peak_gib": peak, **means}
    lab.report.add(row | {"config": dict(config), "lines": run.lines})
    judge(lab, phase)
    if lab.device.type == "cuda":
        torch.cuda.empty_cache()


def open_lab(arguments: argparse.Namespace, report: common.Report, clock: common.Clock) -> Lab:
    """Load the model, prepare the problems, make the sampler; say how long each took."""
    device = common.device_from(arguments)
    tokenizer = load_tokenizer(arguments.model)
    data = prepare(_data_config(arguments), read_template(arguments.template), arguments.seed)
    seconds = {"problems": clock.spent}
    model = load_model(arguments.model, device=device)
    seconds["model"] = clock.spent - seconds["problems"]
    sampling = SamplingConfig(
        max_tokens=arguments.max_tokens, batch_size=max(256, arguments.problems * arguments.group)
    )
    sampler = make_sampler(model, tokenizer, sampling, arguments.dtype)
    report.put("setup_seconds", {name: round(value, 1) for name, value in seconds.items()})
    report.put("data", {
        "train": len(data.train), "dev": len(data.dev), "test": len(data.test), "traces": len(data.traces),
        "template": read_template(arguments.template), "parameters": sum(w.numel() for w in model.parameters()),
        "decoding": resolve_decoding(sampling.decoding, model),
    })  # fmt: skip
    lab = Lab(arguments, device, report, clock, model, tokenizer, data, sampler, sampling)
    lab.base = copy_weights(model)
    if arguments.baseline is not None:
        earlier = json.loads(arguments.baseline.read_text(encoding="utf-8"))
        lab.verdicts["zero_shot"] = earlier["verdicts"]["zero_shot"]
        lab.evaluation_seconds = earlier["evaluation_seconds"]
    return lab


def _data_config(arguments: argparse.Namespace) -> DataConfig:
    if arguments.train is None:
        sizes = ArithmeticConfig(train=2048, dev=256, test=arguments.test_problems)
        return DataConfig(kind="arithmetic", arithmetic=sizes)
    return DataConfig(
        kind="gsm8k", train=str(arguments.train), test=str(arguments.test), dev_size=max(arguments.dev, 1),
        limit_test=arguments.test_problems,
    )  # fmt: skip


def run_phases(lab: Lab, phases: Sequence[str]) -> None:
    """Each phase in its order, with its share of the time that is left after all evaluations still to come."""
    steps = {"zero_shot": zero_shot, "grpo": grpo, "sft": sft, "sft_grpo": sft_grpo}
    for index, phase in enumerate(phases):
        ahead = [name for name in phases[index:] if name in SHARES]
        free = lab.clock.left - 1.3 * lab.evaluation_seconds * len(ahead)
        share = SHARES.get(phase, 0.0) / sum(SHARES[name] for name in ahead) if phase in SHARES else 0.0
        if phase in SHARES and free * share < lab.arguments.least_seconds:
            lab.report.add({"name": phase, "kind": "skipped", "left": lab.clock.left})
            continue
        steps[phase](lab, free * share)


def parse() -> argparse.Namespace:
    """The command line, with sizes for a CPU filled in under --toy."""
    parser = common.base_parser(__doc__, 520.0)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, default=None)
    parser.add_argument("--test", type=Path, default=None)
    parser.add_argument("--template", default="reasoning")
    parser.add_argument("--phases", default="zero_shot,grpo", help=f"in order, of {','.join(PHASES)}")
    parser.add_argument("--baseline", type=Path, default=None, help="learn.json of an earlier call with zero_shot")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--test-problems", type=int, default=500)
    parser.add_argument("--temperatures", default="1,0", help="of the evaluations; the first is the protocol's")
    parser.add_argument("--dev", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=350)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1000, help="at most")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--loss-type", default="reinforce_with_baseline")
    parser.add_argument("--validate-every", type=int, default=10)
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384)
    parser.add_argument("--recompute-activations", action="store_true", help="for less memory in the updates")
    parser.add_argument("--sft-examples", type=int, default=4096)
    parser.add_argument("--sft-epochs", type=int, default=1)
    parser.add_argument("--sft-batch", type=int, default=32)
    parser.add_argument("--sft-learning-rate", type=float, default=1e-5)
    parser.add_argument("--sft-validate-every", type=int, default=64)
    parser.add_argument("--least-seconds", type=float, default=20.0, help="a training phase with less is left out")
    first = parser.parse_args()
    if first.toy:
        parser.set_defaults(
            dtype="float32", test_problems=6, temperatures="1", dev=2, max_tokens=12, problems=2, group=2, steps=2,
            validate_every=1, micro_batch_tokens=1024, sft_examples=8, sft_batch=4, sft_validate_every=1,
            least_seconds=1.0,
        )  # fmt: skip
    arguments = parser.parse_args()
    arguments.phases = arguments.phases.split(",")
    arguments.temperatures = [float(value) for value in arguments.temperatures.split(",")]
    _check(parser, arguments)
    return arguments


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    unknown = set(arguments.phases) - set(PHASES)
    if unknown:
        parser.error(f"no phase {sorted(unknown)[0]!r}: take {', '.join(PHASES)}")
    if "sft_grpo" in arguments.phases and "sft" not in arguments.phases[: arguments.phases.index("sft_grpo")]:
        parser.error("sft_grpo starts from sft's weights: put sft before it")
    if (arguments.train is None) != (arguments.test is None):
        parser.error("give --train and --test together, or neither")


def main() -> None:
    """Set up, run the phases, keep the files."""
    arguments = parse()
    clock = common.Clock(arguments.budget_seconds)
    origin = common.provenance(common.device_from(arguments), arguments.git_sha)
    report = common.Report(arguments.out / "learn.json", origin)
    lab = open_lab(arguments, report, clock)
    run_phases(lab, arguments.phases)
    report.put("seconds", round(clock.spent, 1))


if __name__ == "__main__":
    main()
