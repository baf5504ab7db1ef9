"""GPU against CPU, narrow against wide, packed against alone, resumed against uninterrupted.

    python -m benchmarks.gpu.right --out DIR [--model FOLDER --questions FILE] [--compile] [--toy]

Every row: name, value, bound, pass, why that bound. What is checked is the path that trains: the loops' engine over
packed rows, by every attention kernel that runs here, and over padded ones. The reference is float64 on the CPU, one
sequence at a time, over the plain full logits of the model, and losses in plain sums: written out in `paths` and
`plain_losses`, apart from the code they check. Errors are ||x - ref|| over ||ref||; of log-probs and entropies the
reference's mean is taken off first, so that a large common value hides nothing. Exit code 1 if a row did not pass.
"""

import argparse
import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import TokenSequence
from alignment_core.config import SamplingConfig
from alignment_core.graph_decoding import resolve_decoding
from alignment_core.models import ComputeDtype, frozen_copy, load_model, load_tokenizer
from alignment_core.records import Problem
from alignment_core.sampling import build_requests, make_sampler
from benchmarks.gpu import common, kernels
from benchmarks.gpu.objectives import Objective, objectives, old_log_probs
from benchmarks.gpu.paths import (
    TEMPERATURE,
    Case,
    Scores,
    Way,
    chunked_scores,
    core_gradient,
    core_scores,
    gradient_of_plain,
    make_case,
    plain_scores,
)
from benchmarks.gpu.plain_losses import CLIP, distance_to_clip
from benchmarks.gpu.resume import check_resume

FP32_VALUE, FP32_GRADIENT = 1e-5, 1e-4
BF16_VALUE, BF16_GRADIENT = 5e-2, 1e-1
WHY_FP32 = "float32 rounds at 6e-8; a few layers of sums lose one to two digits"
WHY_FP32_GRADIENT = "as the values, twice through the layers"
WHY_BF16 = "bf16 rounds at 4e-3 per operand, and the errors of the layers add up"

VALUES: tuple[tuple[ComputeDtype, float, str], ...] = (
    ("float32", FP32_VALUE, WHY_FP32),
    ("bfloat16", BF16_VALUE, WHY_BF16),
)
"""Compute type, bound of the relative error of scores, and why."""

PRECISIONS: tuple[tuple[ComputeDtype, float, str], ...] = (
    ("float32", FP32_GRADIENT, WHY_FP32_GRADIENT),
    ("bfloat16", BF16_GRADIENT, WHY_BF16),
)
"""Compute type, bound of a gradient's relative error, and why."""


@dataclasses.dataclass(frozen=True)
class Proof:
    """What all checks share."""

    checks: common.Checks
    case: Case
    model: PreTrainedModel
    """The case's, on the device."""
    reference: Scores
    """In float64 on the CPU."""
    ways: dict[ComputeDtype, dict[str, Way]]
    """Label -> a way that runs here."""


def check_scores(proof: Proof) -> None:
    """Log-probs and entropy of packed rows: every kernel in every type, and the padded way as one more."""
    checks, case, model, reference = proof.checks, proof.case, proof.model, proof.reference
    for dtype, bound, why in VALUES:
        yardstick = _plain(model, case, dtype)
        _score_rows(checks, f"{dtype} plain transformers path (yardstick)", yardstick, reference, bound, why)
        whole = core_scores(model, case, Way(dtype))
        if dtype == "bfloat16":
            for kind in ("log_probs", "entropy"):
                ours, theirs = (_centred_error(item, reference, kind) for item in (whole, yardstick))
                why_ratio = "same rounding, other kernels"
                checks.add(f"{dtype} core error over the yardstick's: {kind}", ours / theirs, 1.5, why_ratio)
        for label, way in proof.ways[dtype].items():
            scores = core_scores(model, case, way)
            _score_rows(checks, f"{label}: all in one", scores, reference, bound, why)
            split = core_scores(model, case, dataclasses.replace(way, max_tokens=case.third))
            _score_rows(checks, f"{label}: rows of {case.third} tokens", split, reference, bound, why)
        alone = core_scores(model, case, Way(dtype, max_tokens=1))
        _score_rows(checks, f"{dtype} one sequence at a time vs packed", alone, whole, bound, why)
    whole = core_scores(model, case, Way())
    _score_rows(checks, "float32 packed vs plain logits", whole, _plain(model, case), FP32_VALUE, WHY_FP32)
    tiny = chunked_scores(model, case, 37)
    _score_rows(checks, "float32 head chunks of 37 vs one", tiny, whole, FP32_VALUE, WHY_FP32)


def present_ways(checks: common.Checks, device: torch.device, dtype: ComputeDtype) -> dict[str, Way]:
    """A way for every kernel that runs here, and the padded one; kernels that do not run are noted with their reason.

    The kernel the core picks must be among those that run.
    """
    ways = {}
    refusals = kernels.absent(device, dtype)
    for kernel, reason in refusals.items():
        label = f"{dtype} packed, kernel {kernel}"
        if reason is not None:
            checks.note(label, "absent", reason)
        else:
            ways[label] = Way(dtype, kernel)
    picked = kernels.chosen(device, dtype)
    why = "0: the kernel that trains here runs here"
    checks.add(f"{dtype} the core's own kernel", float(refusals[picked] is not None), 0, why, kernel=picked)
    return ways | {f"{dtype} padded": Way(dtype, attention="padded")}


def check_backends(proof: Proof) -> None:
    """Every backend torch has for its own attention, forced, in bf16: what sequence by sequence and padded run on."""
    checks, case, model, reference = proof.checks, proof.case, proof.model, proof.reference
    backends = {"math": SDPBackend.MATH, "efficient": SDPBackend.EFFICIENT_ATTENTION}
    backends |= {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for name, backend in backends.items():
        label = f"bfloat16 packed, kernel sdpa by torch's {name} backend"
        try:
            with sdpa_kernel(backend):
                scores = core_scores(model, case, Way("bfloat16", "sdpa"))
        except RuntimeError as error:
            checks.note(label, "absent", str(error).splitlines()[0][:200])
            continue
        _score_rows(checks, label, scores, reference, BF16_VALUE, WHY_BF16)


def check_gradients(proof: Proof) -> None:
    """Every loss under every normalization: value and gradient of float32 and of bf16 with float32 masters."""
    checks, case, model = proof.checks, proof.case, proof.model
    for objective, value, truth in _truths(proof):
        for dtype, bound, why in PRECISIONS:
            ours, gradient = _core(model, case, Way(dtype, max_tokens=2048), objective)
            name = f"{dtype} {objective.name}"
            checks.add(f"{name}: loss", abs(ours - value) / max(abs(value), 1e-3), bound, why, loss=ours)
            _gradient_row(checks, name, gradient, truth, bound, why)


def _truths(proof: Proof) -> Iterator[tuple[Objective, float, Tensor]]:
    """Objectives with their value and gradient in float64; the plain pass is made once."""
    case, reference = proof.case, proof.reference
    wide = copy.deepcopy(case.model).double()
    log_probs = plain_scores(wide, case).log_probs.split(case.lengths)
    for kind in sorted(CLIP):
        room = distance_to_clip(kind, old_log_probs(case, reference, kind), log_probs)
        why = "nats to the nearest edge of the clip, negated: rounding flips no ratio over it"
        proof.checks.add(f"{kind}: room around the clip", -room, -0.01, why)
    for objective in objectives(case, reference):
        yield objective, *gradient_of_plain(wide, objective.plain(log_probs))


def check_splits(proof: Proof) -> None:
    """Gradients of every kernel, split into micro-batches, and recomputed, against float64."""
    checks, case, model, reference = proof.checks, proof.case, proof.model, proof.reference
    objective = next(one for one in objectives(case, reference) if one.name == "grpo_clip masked_mean")
    wide = copy.deepcopy(case.model).double()
    plain = plain_scores(wide, case).log_probs.split(case.lengths)
    _, truth = gradient_of_plain(wide, objective.plain(plain))
    for dtype, bound, why in PRECISIONS:
        for label, way in proof.ways[dtype].items():
            _, whole = _core(model, case, way, objective)
            _gradient_row(checks, label, whole, truth, bound, why)
            for budget, split in ((1, "one sequence at a time"), (case.third, f"micro-batches of {case.third} tokens")):
                _, parts = _core(model, case, dataclasses.replace(way, max_tokens=budget), objective)
                _gradient_row(checks, f"{label}, {split} vs whole", parts, whole, bound, why)
            _, again = _core(model, case, dataclasses.replace(way, recompute=True), objective)
            why_same = "the same kernels run twice: equal but for the order of atomic adds"
            _gradient_row(checks, f"{label}, checkpointing on vs off", again, whole, FP32_GRADIENT, why_same)


def check_copies(proof: Proof) -> None:
    """A frozen reference policy scores as its original does."""
    checks, case, model = proof.checks, proof.case, proof.model
    for dtype in get_args(ComputeDtype):
        ours = core_scores(model, case, Way(dtype))
        theirs = core_scores(model, case, Way(dtype), frozen_copy(model, dtype))
        why = "nats; the copy is held as autocast would round it"
        gap = float((ours.log_probs - theirs.log_probs).abs().max())
        checks.add(f"{dtype} frozen copy vs model: max |log-prob gap|", gap, 0, why)


def check_compiled(proof: Proof) -> None:
    """Compiled layers against plain ones; last, since a compiled model stays one."""
    checks, case, model, reference = proof.checks, proof.case, proof.model, proof.reference
    objective = next(one for one in objectives(case, reference) if one.name == "grpo_clip masked_mean")
    for dtype, bound, why in PRECISIONS:
        _, plain = _core(model, case, Way(dtype), objective)
        compiled = copy.deepcopy(model)
        _, gradient = _core(compiled, case, Way(dtype, max_tokens=case.third, compile=True), objective)
        _gradient_row(checks, f"{dtype} compiled layers vs plain", gradient, plain, bound, why)


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
        nothing = torch.empty(0)
        case = Case(model, tokenizer, sequences, nothing, nothing, nothing)
        ours = core_scores(model, case, Way(dtype, max_tokens=8192)).log_probs.cpu()
        theirs = torch.tensor([value for item in completions for value in item.sampler_log_probs or ()])
        gap = (ours - theirs).abs()
        decoding = resolve_decoding(sampling.decoding, model)
        spread = {"decoding": decoding, "tokens": len(gap), "max": float(gap.max()), "p99": float(gap.quantile(0.99))}
        if dtype == "float32":
            why = "nats; both sides float32, cache against one pass: only the order of sums differs"
            checks.add("sampler vs trainer fp32: max |log-prob gap|", float(gap.max()), 2e-3, why, **spread)
        else:
            why = "nats; published runs with two bf16 engines report 0.01 to 0.03"
            checks.add("sampler vs trainer bf16: mean |log-prob gap|", float(gap.mean()), 0.05, why, **spread)
            why = "mean of exp|gap|; 1.1 is the gate of a published 1.5B run"
            checks.add("sampler vs trainer bf16: token probability error", float(gap.exp().mean()), 1.1, why)
        del sampler


def _core(model: PreTrainedModel, case: Case, way: Way, objective: Objective) -> tuple[float, Tensor]:
    return core_gradient(model, case, way, objective.share, objective.known, objective.together)


def _plain(model: PreTrainedModel, case: Case, dtype: ComputeDtype = "float32") -> Scores:
    with torch.no_grad():
        return plain_scores(model, case, dtype)


def _gradient_row(checks: common.Checks, name: str, gradient: Tensor, truth: Tensor, bound: float, why: str) -> None:
    cosine = float(torch.nn.functional.cosine_similarity(gradient, truth, dim=0))
    checks.add(f"{name}: gradient", common.relative_error(gradient, truth), bound, why, cosine=cosine)


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
    proof = open_proof(arguments, checks, device)
    prompts = [f"w{i} w{3 * i % 500} w{7 * i % 500}" for i in range(8)]
    groups: list[tuple[str, Callable[[], None]]] = [
        ("scores", lambda: check_scores(proof)),
        ("gradients", lambda: check_gradients(proof)),
        ("splits", lambda: check_splits(proof)),
        ("copies", lambda: check_copies(proof)),
        ("sampler", lambda: check_sampler(checks, *_sampled_model(arguments, device), prompts, 24)),
        ("backends", lambda: check_backends(proof)),
        ("resume", lambda: check_resume(checks, device, arguments.toy)),
    ]
    if arguments.model is not None:
        groups.append(("real", lambda: _real_model(checks, arguments, device)))
    if arguments.compile:
        groups.append(("compiled", lambda: check_compiled(proof)))
    for name, group in groups:
        if clock.left <= 0:
            checks.note(f"group {name}", "skipped", "the budget was spent")
            continue
        group()
        report.put(f"seconds/{name}", round(clock.spent, 1))


def open_proof(arguments: argparse.Namespace, checks: common.Checks, device: torch.device) -> Proof:
    """The case, its reference, and the core on this host's CPU beside it; which kernels run here."""
    case = make_case(arguments)
    reference = _plain(copy.deepcopy(case.model).double(), case)
    on_cpu = core_scores(copy.deepcopy(case.model), case, Way())
    _score_rows(checks, "cpu float32 core", on_cpu, reference, FP32_VALUE, WHY_FP32)
    ways = {dtype: present_ways(checks, device, dtype) for dtype in get_args(ComputeDtype)}
    return Proof(checks, case, common.moved(copy.deepcopy(case.model), device), reference, ways)


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
    parser.add_argument("--compile", action="store_true", help="compiled layers too; a minute or more")
    arguments = parser.parse_args()
    device = common.device_from(arguments)
    report = common.Report(arguments.out / "right.json", common.provenance(device, arguments.git_sha))
    report.put("tf32", {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32})
    run_checks(arguments, report, device)
    failed = [row["name"] for row in report.rows if row["pass"] is False]
    report.put("summary", {"checks": len(report.rows), "failed": failed})
    print(f"{len(report.rows)} rows, failed: {failed or 'none'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
