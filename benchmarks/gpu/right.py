"""GPU against CPU, narrow against wide, split against whole, resumed against uninterrupted.

    python -m benchmarks.gpu.right --out DIR [--model FOLDER --questions FILE] [--toy]

Every row: name, value, bound, pass, why that bound. The reference is float64 on the CPU, one sequence at a time, over
the plain full logits of the model: written out here, apart from the code it checks. Errors are ||x - ref|| / ||ref||;
of log-probs and entropies the reference's mean is taken off first, so that a large common value hides nothing.
"""

import argparse
import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import TokenSequence, collate, micro_batches
from alignment_core.config import LengthNormalization, LossType, SamplingConfig
from alignment_core.logprobs import response_log_probs
from alignment_core.losses import aggregate, batch_denominator, policy_gradient_loss
from alignment_core.models import ComputeDtype, autocast, load_model, load_tokenizer
from alignment_core.records import Problem
from alignment_core.sampling import build_requests, make_sampler
from benchmarks.gpu import common
from benchmarks.gpu.resume import check_resume

TEMPERATURE = 0.8
CONSTANT = 128.0
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


@dataclass(frozen=True)
class Scores:
    """Log-probs and entropies of all response tokens, sequence by sequence, in one vector each."""

    log_probs: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class Case:
    """A model, sequences, per-sequence weights and an old policy: what the checks compute on."""

    model: PreTrainedModel
    sequences: list[TokenSequence]
    weights: Tensor
    """(B,)."""
    old_shift: Tensor
    """(tokens,) log p_old - log p, away from the clip's edge, so that rounding flips no token over it."""
    vocab_limit: int


def make_case(arguments: argparse.Namespace) -> Case:
    """Random weights with sharp distributions, and sequences of very different lengths."""
    vocab, hidden, layers, count = (512, 128, 2, 6) if arguments.toy else (8192, 512, 6, 16)
    model = common.random_model(common.small_shape(vocab, hidden, layers), torch.device("cpu"), arguments.seed, 3.0)
    lengths = common.gamma_lengths(count, 24 if arguments.toy else 90, 200, arguments.seed)
    prompts = [3 + 7 * (index % 5) for index in range(count)]
    sequences = common.random_sequences(prompts, lengths, vocab - 8, arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    weights = torch.randn(count, generator=generator)
    picks = torch.randint(0, 4, (sum(lengths),), generator=generator)
    shift = torch.tensor([-0.6, -0.08, 0.08, 0.6])[picks]
    return Case(model, sequences, weights, shift, vocab - 4)


# ---------------------------------------------------------------- the reference


def plain_scores(
    model: nn.Module, sequences: Sequence[TokenSequence], limit: int, compute_dtype: ComputeDtype = "float32"
) -> Scores:
    """One sequence at a time, full logits, log-softmax in the model's own type (float32 at least)."""
    device = next(model.parameters()).device
    log_probs, entropies = [], []
    for sequence in sequences:
        ids = torch.tensor([sequence.prompt_ids + sequence.response_ids], device=device)
        with autocast(device, compute_dtype):
            logits = model(input_ids=ids, use_cache=False).logits
        logits = logits[0, len(sequence.prompt_ids) - 1 : -1, :limit]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / TEMPERATURE
        log_p = torch.log_softmax(wide, dim=-1)
        targets = ids[0, len(sequence.prompt_ids) :, None]
        log_probs.append(log_p.gather(-1, targets)[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return Scores(torch.cat(log_probs), torch.cat(entropies).detach())


def reference_loss(case: Case, log_probs: Tensor, kind: LossType, mode: LengthNormalization) -> Tensor:
    """The loss of the whole batch, written per token in plain sums, with old = reference log-probs + shift."""
    lengths = [len(sequence.response_ids) for sequence in case.sequences]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    advantage = case.weights.to(log_probs)[owner]
    ratio = torch.exp(-case.old_shift.to(log_probs) + log_probs - log_probs.detach())
    if kind in ("no_baseline", "reinforce_with_baseline"):
        per_token = -advantage * log_probs
    elif kind == "grpo_no_clip":
        per_token = -advantage * ratio
    else:
        per_token = -torch.minimum(advantage * ratio, advantage * ratio.clamp(0.8, 1.2))
    share = {
        "masked_mean": 1 / (len(lengths) * torch.tensor(lengths, dtype=log_probs.dtype)[owner]),
        "masked_normalize": torch.full_like(per_token, 1 / (len(lengths) * CONSTANT)),
        "token_mean": torch.full_like(per_token, 1 / sum(lengths)),
    }[mode]
    return (per_token * share).sum()


# ---------------------------------------------------------------- the core's path


def core_scores(
    model: nn.Module, case: Case, compute_dtype: ComputeDtype, max_tokens: int, chunk_tokens: int = 2048
) -> Scores:
    """The path that trains: padded micro-batches, chunked head; back in the order of the sequences."""
    device = next(model.parameters()).device
    log_probs: dict[int, Tensor] = {}
    entropies: dict[int, Tensor] = {}
    for rows in micro_batches([sequence.length for sequence in case.sequences], max_tokens):
        batch = collate([case.sequences[row] for row in rows], 0, device)
        with autocast(device, compute_dtype):
            scores = response_log_probs(
                model, batch, TEMPERATURE, True, vocab_limit=case.vocab_limit, chunk_tokens=chunk_tokens
            )
        for index, row in enumerate(rows):
            mask = batch.response_mask[index]
            log_probs[row] = scores.log_probs[index][mask]
            entropies[row] = scores.entropy[index][mask] if scores.entropy is not None else log_probs[row] * 0
    order = range(len(case.sequences))
    return Scores(torch.cat([log_probs[i] for i in order]), torch.cat([entropies[i] for i in order]))


def core_loss(
    model: nn.Module,
    case: Case,
    old: Tensor,
    kind: LossType,
    mode: LengthNormalization,
    compute_dtype: ComputeDtype,
    max_tokens: int,
) -> float:
    """Loss of the batch through the core, its gradient left in the weights; `old` (tokens,) on the CPU."""
    device = next(model.parameters()).device
    lengths = [len(sequence.response_ids) for sequence in case.sequences]
    pieces = old.split(lengths)
    denominator = batch_denominator(lengths, mode)
    total = 0.0
    for rows in micro_batches([sequence.length for sequence in case.sequences], max_tokens):
        batch = collate([case.sequences[row] for row in rows], 0, device)
        with autocast(device, compute_dtype):
            scores = response_log_probs(model, batch, TEMPERATURE, vocab_limit=case.vocab_limit)
        values = torch.cat([pieces[row] for row in rows]).to(device, scores.log_probs.dtype)
        spread = torch.zeros_like(scores.log_probs).masked_scatter(batch.response_mask, values)
        weights = case.weights[list(rows)].to(device)[:, None]
        token_loss = policy_gradient_loss(kind, scores.log_probs, weights, spread, 0.2)
        share = aggregate(token_loss.loss, batch.response_mask, mode, denominator, CONSTANT)
        share.backward()
        total += float(share.detach())
    return total


# ---------------------------------------------------------------- checks


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
        common.set_checkpointing(model, True)
        _, recomputed = _core_gradient(model, case, old, "grpo_clip", "masked_mean", dtype, 1_000_000)
        common.set_checkpointing(model, False)
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


# ---------------------------------------------------------------- glue


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
