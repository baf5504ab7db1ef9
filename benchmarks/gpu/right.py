"""GPU against CPU, narrow against wide, split against whole, resumed against uninterrupted.

    python -m benchmarks.gpu.right --out DIR [--model FOLDER --questions FILE] [--toy]

Every row: name, value, bound, pass, why that bound. The reference is float64 on the CPU, one sequence at a time, over
the plain full logits of the model: written out in `paths`, apart from the code it checks. Errors are ||x - ref|| over
||ref||; of log-probs and entropies the reference's mean is taken off first, so that a large common value hides nothing.
"""

import argparse
import copy
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import TokenSequence
from alignment_core.config import SamplingConfig
from alignment_core.models import ComputeDtype, load_model, load_tokenizer, set_checkpointing
from alignment_core.records import Problem
from alignment_core.sampling import build_requests, make_sampler
from alignment_core.training_config import LengthNormalization, LossType
from benchmarks.gpu import common
from benchmarks.gpu.paths import (
    TEMPERATURE,
    Case,
    Scores,
    core_loss,
    core_scores,
    make_case,
    plain_scores,
    reference_loss,
)
from benchmarks.gpu.resume import check_resume

FP32_VALUE, FP32_GRADIENT = 1e-5, 1e-4
BF16_VALUE, BF16_GRADIENT = 5e-2, 1e-1
WHY_FP32 = "float32 rounds at 6e-8; a few layers of sums lose one to two digits"
WHY_FP32_GRADIENT = "as the values, twice through the layers"
WHY_BF16 = "bf16 rounds at 4e-3 per operand, and the errors of the layers add up"


PRECISIONS: tuple[tuple[ComputeDtype, float, str], ...] = (
    ("float32", FP32_GRADIENT, WHY_FP32_GRADIENT),
    ("bfloat16", BF16_GRADIENT, WHY_BF16),
)
"""Compute type, bound of a gradient's relative error, and why."""


def check_scores(checks: common.Checks, case: Case, model: PreTrainedModel, reference: Scores) -> None:
    """Log-probs and entropy in float32 and bf16, chunked head and plain logits, split and whole."""
    with torch.no_grad():
        whole = core_scores(model, case, "float32", 1_000_000)
        _score_rows(checks, "fp32 core", whole, reference, FP32_VALUE, WHY_FP32)
        plain = plain_scores(model, case.sequences, case.vocab_limit)
        _score_rows(checks, "fp32 chunked head vs plain logits", whole, plain, FP32_VALUE, WHY_FP32)
        tiny_chunks = core_scores(model, case, "float32", 1_000_000, chunk_tokens=37)
        _score_rows(checks, "fp32 head chunks of 37 vs one", tiny_chunks, whole, FP32_VALUE, WHY_FP32)
        single = core_scores(model, case, "float32", 1)
        _score_rows(checks, "fp32 one sequence at a time vs padded batch", single, whole, FP32_VALUE, WHY_FP32)
        narrow = core_scores(model, case, "bfloat16", 1_000_000)
        _score_rows(checks, "bf16 core", narrow, reference, BF16_VALUE, WHY_BF16)
        yardstick = plain_scores(model, case.sequences, case.vocab_limit, "bfloat16")
        _score_rows(checks, "bf16 plain transformers path (yardstick)", yardstick, reference, BF16_VALUE, WHY_BF16)
        for kind in ("log_probs", "entropy"):
            ours, theirs = (_centred_error(item, reference, kind) for item in (narrow, yardstick))
            checks.add(
                f"bf16 core error over the yardstick's: {kind}", ours / theirs, 1.5, "same rounding, other kernels"
            )
        single = core_scores(model, case, "bfloat16", 1)
        _score_rows(checks, "bf16 one sequence at a time vs padded batch", single, narrow, BF16_VALUE, WHY_BF16)


def check_kernels(checks: common.Checks, case: Case, model: PreTrainedModel, reference: Scores) -> None:
    """Each attention kernel torch has for these shapes, forced, in bf16."""
    kernels = {"math": SDPBackend.MATH, "efficient": SDPBackend.EFFICIENT_ATTENTION}
    kernels |= {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for name, kernel in kernels.items():
        try:
            with torch.no_grad(), sdpa_kernel(kernel):
                scores = core_scores(model, case, "bfloat16", 4096)
        except RuntimeError as error:
            checks.note(f"bf16 attention kernel {name}", "absent", str(error).splitlines()[0][:200])
            continue
        _score_rows(checks, f"bf16 attention kernel {name}", scores, reference, BF16_VALUE, WHY_BF16)


def check_gradients(checks: common.Checks, case: Case, model: PreTrainedModel, reference: Scores) -> None:
    """Every loss under every length normalisation: value and gradient of float32 and of bf16 with float32 masters."""
    wide = copy.deepcopy(case.model).double()
    old = reference.log_probs + case.old_shift
    for kind, mode in itertools.product(get_args(LossType), get_args(LengthNormalization)):
        wide.zero_grad(set_to_none=True)
        loss = reference_loss(case, plain_scores(wide, case.sequences, case.vocab_limit).log_probs, kind, mode)
        loss.backward()
        truth, value = common.gradient_vector(wide), float(loss.detach())
        for dtype, bound, why in PRECISIONS:
            ours, gradient = _core_gradient(model, case, old, kind, mode, dtype, 2048)
            name = f"{dtype} {kind} {mode}"
            checks.add(f"{name}: loss", abs(ours - value) / max(abs(value), 1e-3), bound, why, loss=ours)
            error = common.relative_error(gradient, truth)
            cosine = float(torch.nn.functional.cosine_similarity(gradient, truth, dim=0))
            checks.add(f"{name}: gradient", error, bound, why, cosine=cosine)


def check_splits(checks: common.Checks, case: Case, model: PreTrainedModel, reference: Scores) -> None:
    """Micro-batches against the whole, and gradient checkpointing on against off."""
    old = reference.log_probs + case.old_shift
    for dtype, bound, why in PRECISIONS:
        _, whole = _core_gradient(model, case, old, "grpo_clip", "masked_mean", dtype, 1_000_000)
        for budget, label in ((1, "one sequence at a time"), (512, "micro-batches of 512 tokens")):
            _, split = _core_gradient(model, case, old, "grpo_clip", "masked_mean", dtype, budget)
            error = common.relative_error(split, whole)
            checks.add(f"{dtype} gradient: {label} vs whole batch", error, bound, why)
        model.train()
        set_checkpointing(model, True)
        _, recomputed = _core_gradient(model, case, old, "grpo_clip", "masked_mean", dtype, 1_000_000)
        set_checkpointing(model, False)
        model.eval()
        error = common.relative_error(recomputed, whole)
        why_same = "the same kernels run twice: equal but for the order of atomic adds"
        checks.add(f"{dtype} gradient: checkpointing on vs off", error, FP32_GRADIENT, why_same)


def check_sampler(
    checks: common.Checks, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new: int
) -> None:
    """What the sampler says of its tokens against what the trainer says of them, same precision."""
    problems = [Problem(id=f"p{i}", question=text, prompt=text, ground_truth="0") for i, text in enumerate(prompts)]
    sampling = SamplingConfig(max_tokens=new, min_tokens=4, temperature=TEMPERATURE)
    for dtype in get_args(ComputeDtype):
        sampler = make_sampler(model, tokenizer, sampling, dtype)
        sampler.update_weights(model)
        completions = sampler.sample(build_requests(problems, tokenizer, 4, 0, "right"), sampling)
        sequences = [TokenSequence(item.prompt_ids, item.response_ids) for item in completions]
        case = Case(model, sequences, torch.empty(0), torch.empty(0), len(tokenizer))
        with torch.no_grad():
            ours = core_scores(model, case, dtype, 8192).log_probs.cpu()
        theirs = torch.tensor([value for item in completions for value in item.sampler_log_probs or ()])
        gap = (ours - theirs).abs()
        spread = {"tokens": len(gap), "max": float(gap.max()), "p99": float(gap.quantile(0.99))}
        if dtype == "float32":
            why = "nats; both sides float32, cache against one pass: only the order of sums differs"
            checks.add("sampler vs trainer fp32: max |log-prob gap|", float(gap.max()), 2e-3, why, **spread)
        else:
            why = "nats; published runs with two bf16 engines report 0.01 to 0.03"
            checks.add("sampler vs trainer bf16: mean |log-prob gap|", float(gap.mean()), 0.05, why, **spread)
            why = "mean of exp|gap|; 1.1 is the gate of a published 1.5B run"
            checks.add("sampler vs trainer bf16: token probability error", float(gap.exp().mean()), 1.1, why)
        del sampler


def _core_gradient(
    model: PreTrainedModel,
    case: Case,
    old: Tensor,
    kind: LossType,
    mode: LengthNormalization,
    dtype: ComputeDtype,
    max_tokens: int,
) -> tuple[float, Tensor]:
    model.zero_grad(set_to_none=True)
    loss = core_loss(model, case, old, kind, mode, dtype, max_tokens)
    gradient = common.gradient_vector(model)
    model.zero_grad(set_to_none=True)
    return loss, gradient


def _score_rows(checks: common.Checks, name: str, scores: Scores, reference: Scores, bound: float, why: str) -> None:
    for kind in ("log_probs", "entropy"):
        gap = getattr(scores, kind).double().cpu() - getattr(reference, kind).double().cpu()
        checks.add(
            f"{name}: {kind}", _centred_error(scores, reference, kind), bound, why, max_abs=float(gap.abs().max())
        )


def _centred_error(scores: Scores, reference: Scores, kind: str) -> float:
    """Relative error after the reference's mean is taken off both."""
    ours, truth = getattr(scores, kind).double().cpu(), getattr(reference, kind).double().cpu()
    return common.relative_error(ours - truth.mean(), truth - truth.mean())


def real_prompts(path: Path | None) -> list[str]:
    """Prompts for a real model: lines of a JSONL of questions, else two fixed ones."""
    if path is None:
        return [
            "Question: What is 17 + 25?\nAnswer:",
            "Question: Tom has 12 eggs and eats 5. How many are left?\nAnswer:",
        ]
    from alignment_core.problems import load_problems

    return [
        problem.prompt
        for problem in load_problems(str(path), "gsm8k", "test", "Question: {question}\nAnswer:", [])[:16]
    ]


def run_checks(arguments: argparse.Namespace, report: common.Report, device: torch.device) -> None:
    """All groups of checks, in order of importance; none is begun after the budget is spent."""
    checks, clock = common.Checks(report), common.Clock(arguments.budget_seconds)
    case = make_case(arguments)
    model = common.moved(copy.deepcopy(case.model), device)
    with torch.no_grad():
        reference = plain_scores(copy.deepcopy(case.model).double(), case.sequences, case.vocab_limit)
        on_cpu = core_scores(case.model, case, "float32", 1_000_000)
    _score_rows(checks, "cpu fp32 core", on_cpu, reference, FP32_VALUE, WHY_FP32)
    prompts = [f"w{i} w{3 * i % 500} w{7 * i % 500}" for i in range(8)]
    groups: list[tuple[str, Callable[[], None]]] = [
        ("scores", lambda: check_scores(checks, case, model, reference)),
        ("gradients", lambda: check_gradients(checks, case, model, reference)),
        ("splits", lambda: check_splits(checks, case, model, reference)),
        ("sampler", lambda: check_sampler(checks, *_sampled_model(arguments, device), prompts, 24)),
        ("kernels", lambda: check_kernels(checks, case, model, reference)),
        ("resume", lambda: check_resume(checks, device, arguments.toy)),
    ]
    if arguments.model is not None:
        groups.append(("real", lambda: _real_model(checks, arguments, device)))
    for name, group in groups:
        if clock.left <= 0:
            checks.note(f"group {name}", "skipped", "the budget was spent")
            continue
        group()
        report.put(f"seconds/{name}", round(clock.spent, 1))


def _sampled_model(
    arguments: argparse.Namespace, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    hidden, layers = (128, 2) if arguments.toy else (512, 6)
    model = common.moved(common.random_model(common.small_shape(512, hidden, layers), torch.device("cpu"), 5), device)
    return model, common.word_tokenizer(512)


def _real_model(checks: common.Checks, arguments: argparse.Namespace, device: torch.device) -> None:
    """The sampler against the trainer on real weights, and the bf16 trainer against the float32 one."""
    model, tokenizer = load_model(arguments.model, device=device), load_tokenizer(arguments.model)
    checks.note("real model", str(arguments.model), "the rows below are of these weights")
    check_sampler(checks, model, tokenizer, real_prompts(arguments.questions), 16 if arguments.toy else 128)


def main() -> None:
    """Parse, run, summarise."""
    parser = common.base_parser(__doc__, 280.0)
    parser.add_argument("--model", type=Path, default=None, help="a real checkpoint for the sampler check")
    parser.add_argument("--questions", type=Path, default=None, help="GSM8K jsonl whose first 16 questions prompt it")
    arguments = parser.parse_args()
    device = common.device_from(arguments)
    report = common.Report(arguments.out / "right.json", common.provenance(device, arguments.git_sha))
    report.put("tf32", {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32})
    run_checks(arguments, report, device)
    failed = [row["name"] for row in report.rows if row["pass"] is False]
    report.put("summary", {"checks": len(report.rows), "failed": failed})
    print(f"{len(report.rows)} rows, failed: {failed or 'none'}")


if __name__ == "__main__":
    main()
