"""Where a training step's time goes on one CPU thread, and how far it is from the machine's own limit.

    python -m benchmarks.training_floor [--vocabulary 32768] [--repetitions 3]

The floor is the step's matrix products at the rate this machine reaches in a large float32 product, measured in
turn with the steps, in processor time; everything else is counted as zero. The profile is of one more step.
"""

import argparse
import statistics
import time

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2ForCausalLM

from alignment_core.batching import TokenSequence
from alignment_core.engine import Engine
from alignment_core.logprobs import gradient_of
from alignment_core.optimization import StepGuard, apply_update, make_optimizer
from alignment_core.runs import MemoryRun
from alignment_core.training_config import EngineConfig, OptimizerConfig
from benchmarks.training_work import Work, make_model, make_prompts, make_responses, make_tokenizer

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::addmm_"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "softmax of the head": ("aten::_log_softmax", "aten::exp", "aten::linalg_vecdot", "aten::scatter_add_"),
    "optimizer": ("aten::_fused_adamw_", "aten::_foreach_norm", "aten::linalg_vector_norm", "aten::_foreach_mul_"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32_768)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = Work(vocab_size=options.vocabulary, problems=4, group_size=8, longest_prompt=96, longest_response=160)
    model, prompts = make_model(work).train(), make_prompts(work)
    sequences = [
        TokenSequence(prompts[index // work.group_size], response)
        for index, response in enumerate(make_responses(work, 0))
    ]
    engine = Engine(model, make_tokenizer(work), EngineConfig(micro_batch_tokens=work.rows * 256))
    optimizer = make_optimizer(model, OptimizerConfig())
    step(engine, optimizer, sequences)
    rates, seconds = [], []
    for _ in range(options.repetitions):
        rates.append(product_rate())
        began = time.process_time()
        step(engine, optimizer, sequences)
        seconds.append(time.process_time() - began)
    work_done = products(model, sequences)
    floor = work_done / statistics.median(rates)
    print(
        f"{work_done / 1e9:.0f} GFLOP at {statistics.median(rates) / 1e9:.0f} GFLOP/s: floor {floor:.2f} s, "
        f"step {statistics.median(seconds):.2f} s, {statistics.median(seconds) / floor:.2f} times the floor"
    )
    show_profile(engine, optimizer, sequences)


def step(engine: Engine, optimizer: torch.optim.Optimizer, sequences: list[TokenSequence]) -> None:
    """One update on the mean log-probability."""
    count = sum(len(sequence.response_ids) for sequence in sequences)
    for _, batch in engine.micro_batches(sequences):
        expected = gradient_of(lambda log_probs: -log_probs.sum() / count, batch.response_mask)
        scores = engine.scores(batch, with_entropy=True, expected_gradient=expected)
        engine.backward(-scores.log_probs.sum() / count)
    engine.sum_gradients()
    apply_update(engine.model, optimizer, OptimizerConfig(), 0, 1, StepGuard(MemoryRun(), 1, sequences))


def products(model: Qwen2ForCausalLM, sequences: list[TokenSequence]) -> float:
    """Floating-point operations of the weights' products, forward and twice that backward: 6 per weight and token.

    The body meets each prompt once and no response's last token, the head each response token.
    """
    head = model.lm_head.weight.numel()
    body = sum(weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2) - head
    distinct = {tuple(sequence.prompt_ids) for sequence in sequences}
    said = sum(len(sequence.response_ids) for sequence in sequences)
    return 6.0 * (body * (sum(map(len, distinct)) + said - len(sequences)) + head * said)


def product_rate() -> float:
    """Operations a second of a (1024, 256) by (256, 8192) product."""
    left, right = torch.randn(1024, 256), torch.randn(256, 8192)
    taken = []
    for _ in range(5):
        began = time.process_time()
        torch.mm(left, right)
        taken.append(time.process_time() - began)
    return 2.0 * 1024 * 256 * 8192 / min(taken)


def show_profile(engine: Engine, optimizer: torch.optim.Optimizer, sequences: list[TokenSequence]) -> None:
    """Shares of one step's time, by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step(engine, optimizer, sequences)
    times = {entry.key: entry.self_cpu_time_total for entry in recorded.key_averages()}
    total = sum(times.values())
    shares = {kind: sum(times.get(name, 0.0) for name in names) / total for kind, names in KINDS.items()}
    named = {name for names in KINDS.values() for name in names}
    rest = sorted(((taken / total, name) for name, taken in times.items() if name not in named), reverse=True)
    print(", ".join(f"{kind} {share:.0%}" for kind, share in shares.items()) + f", rest {1 - sum(shares.values()):.0%}")
    print("largest of the rest: " + ", ".join(f"{name} {share:.1%}" for share, name in rest[:8]))


if __name__ == "__main__":
    main()
