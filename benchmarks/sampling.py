"""Our samplers against `model.generate` with left padding: prompts and responses of mixed length, one CPU thread.

    python -m benchmarks.sampling [--repetitions 3] [--vocabulary 32768,512] [--eager] [--out FILE]
    .vllm/bin/python -m benchmarks.sampling     the vllm sampler too, in an interpreter that has it

A random model draws every id about equally often, so one id in 48 is made an end of text: lengths are geometric, as
uneven as those of rollouts. Both draw at temperature 1 without top-p; ours also gives log-probs and entropies, which
`generate` does not. All ways take turns in one process, and a ratio is of neighbouring runs. vllm's engine is started
before, compiled unless `--eager`; its weights are synced in every turn, as a GRPO step does it, within its time.
Seconds are of processor time: the machine's other work does not count.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from alignment_core.config import SamplingConfig, VllmConfig
from alignment_core.sampling import PromptRequest, make_sampler
from benchmarks.training_work import PAD, Work, make_model, make_prompts, make_tokenizer

GOAL = 1.5
"""Times the tokens a second of `generate`."""
ENDING = 48
"""One id in so many ends a text."""
LIMIT = 192
"""Longest response."""


def main() -> None:
    """Measure, print, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--vocabulary", type=lambda text: [int(one) for one in text.split(",")], default=[32_768, 512])
    parser.add_argument("--eager", action="store_true", help="do not have vllm compile")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {vocabulary: measure(vocabulary, options.repetitions, options.eager) for vocabulary in options.vocabulary}
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def measure(vocabulary: int, repetitions: int, eager: bool) -> dict[str, list[float]]:
    """Tokens a second of each way, in turns."""
    work = Work(vocab_size=vocabulary, problems=16, group_size=4, longest_prompt=128)
    tokenizer = make_tokenizer(work)
    model = make_model(work, eos=list(range(0, vocabulary, ENDING))).eval()
    prompts = [prompt for prompt in make_prompts(work) for _ in range(work.group_size)]
    ways: dict[str, Callable[[int], int]] = {
        "generate": lambda seed: generate(model, prompts, seed),
        "plain": lambda seed: ours(model, tokenizer, prompts, seed, "plain"),
        "static": lambda seed: ours(model, tokenizer, prompts, seed, "static"),
    }
    if importlib.util.find_spec("vllm") is not None:
        ways["vllm"] = on_vllm(model, tokenizer, prompts, eager)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions):
        for name, way in ways.items():
            print(f"vocabulary {vocabulary}, {name}", file=sys.stderr, flush=True)
            began = time.process_time()
            rates[name].append(way(repetition) / (time.process_time() - began))
    for name in list(ways)[1:]:
        ratios = sorted(our / their for our, their in zip(rates[name], rates["generate"], strict=True))
        print(
            f"vocabulary {vocabulary}, {name}: {statistics.median(rates[name]):.0f} tokens/s, "
            f"generate {statistics.median(rates['generate']):.0f}; ratio {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}), goal {GOAL}",
            flush=True,
        )
    return rates


def generate(model: Qwen2ForCausalLM, prompts: list[list[int]], seed: int) -> int:
    """Response tokens, up to each one's end, of one call of `generate`."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    torch.manual_seed(seed)
    with torch.inference_mode():
        whole = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=LIMIT, pad_token_id=PAD,
        )  # fmt: skip
    ends = torch.isin(whole[:, longest:], torch.tensor(model.config.eos_token_id))
    lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, ends.shape[1])
    return int(lengths.sum())


def ours(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]], seed: int, decoding: str
) -> int:
    """Response tokens of one call of our sampler."""
    config = SamplingConfig(max_tokens=LIMIT, stop=(), decoding=decoding, batch_size=len(prompts))
    done = make_sampler(model, tokenizer, config).sample(requests_of(prompts, seed), config)
    return sum(len(item.response_ids) for item in done)


def on_vllm(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]], eager: bool
) -> Callable[[int], int]:
    """The same on vllm's engine, which is started and warmed here; it computes with the threads that torch has."""
    engine = VllmConfig(kv_cache_gb=0.5, enforce_eager=eager)
    config = SamplingConfig(backend="vllm", vllm=engine, max_tokens=LIMIT, stop=(), batch_size=len(prompts))
    sampler = make_sampler(model, tokenizer, config)
    if torch.get_num_threads() != 1:
        raise RuntimeError("vllm took more threads than the other ways have: start this with OMP_NUM_THREADS=1")

    def sample(seed: int) -> int:
        sampler.update_weights(model)
        done = sampler.sample(requests_of(prompts, seed), config)
        return sum(len(item.response_ids) for item in done)

    sample(-1)
    return sample


def requests_of(prompts: list[list[int]], seed: int) -> list[PromptRequest]:
    """One request a prompt."""
    return [PromptRequest(f"p{n}", 0, prompt, (seed + 1) * 1000 + n) for n, prompt in enumerate(prompts)]


if __name__ == "__main__":
    main()
