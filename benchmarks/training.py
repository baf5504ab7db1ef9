"""Our training steps against TRL's, on the same model, sequences, rewards and settings, one thread, on this CPU.

    python -m benchmarks.training [--peer-python PYTHON] [--repetitions 3] [--only sft,grpo,step,memory,scaling]
        [--out FILE]

PYTHON is an interpreter that has trl beside our dependencies. Engines take turns, each in a process of its own, so
that a slow minute of a shared machine falls on both; a ratio is of neighbouring runs, shown as its least, median and
greatest value. TRL pads to the longest of eight sequences, and scores prompts and padding too; we run packed rows with
each prompt once, as many tokens at a time as its padded batch may hold. The first step of each process is left out.
Seconds are of processor time, which on one thread and an idle machine is all time there is.
`grpo` is the update alone, on given rollouts; `step` the whole step, by its parts (`benchmarks.training_steps`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.training_steps import PARTS
from benchmarks.training_work import Work, make_prompts, make_responses

ROOT = Path(__file__).parents[1]
TASKS = ("sft", "grpo", "step", "memory", "scaling")
GOALS = {"sft": 1.2, "grpo": 2.0}
"""Times TRL's speed."""
MEMORY_GOAL = 0.5
"""Times TRL's memory, above what the process held before training, at a vocabulary of 152k."""
SIZES = {
    "sft": Work(problems=16, group_size=1, longest_prompt=96, longest_response=160),
    "grpo": Work(problems=4, group_size=8, longest_prompt=96, longest_response=160),
}
LARGE_VOCABULARY = Work(
    vocab_size=152_064, hidden_size=128, layers=2, problems=4, group_size=4, longest_prompt=96, longest_response=160,
    rows=8, steps=1,
)  # fmt: skip
SCALING = [
    (f"V {vocabulary}, {rows} sequences of up to {length}", vocabulary, rows, length)
    for vocabulary in (32_768, 152_064)
    for rows, length in ((4, 128), (8, 128), (4, 512))
]


def main() -> None:
    """Measure, print tables, write JSON if asked."""
    options = parse_arguments()
    found: dict[str, Any] = {}
    for name in options.only:
        if name in GOALS:
            found[name] = compare(name, SIZES[name], options)
            show_speed(name, SIZES[name], found[name])
        elif name == "step":
            found[name] = compare(name, SIZES["grpo"], options)
            show_steps(found[name])
        elif name == "memory":
            found[name] = {task: compare(task, LARGE_VOCABULARY, options) for task in GOALS}
            for task, pairs in found[name].items():
                show_memory(task, pairs)
        else:
            found[name] = {}
            for label, vocabulary, rows, length in SCALING:
                found[name][label] = scale(vocabulary, rows, length, options)
                show_scaling(label, found[name][label])
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def compare(task: str, work: Work, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Pairs of neighbouring runs, ours first in one pair and second in the next."""
    pairs = []
    for repetition in range(options.repetitions):
        engines = ("ours", "trl") if repetition % 2 == 0 else ("trl", "ours")
        pairs.append({engine: run(engine, task, work, options) for engine in engines})
    return pairs


def scale(vocabulary: int, rows: int, length: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One pair at another size, on the update."""
    work = Work(
        vocab_size=vocabulary, hidden_size=128, layers=2, problems=max(rows // 4, 1), group_size=4,
        longest_prompt=length // 4, longest_response=length * 3 // 4, rows=rows, steps=1,
    )  # fmt: skip
    return compare("grpo", work, argparse.Namespace(**{**vars(options), "repetitions": 1}))


def run(engine: str, task: str, work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """Numbers of one process."""
    python = options.peer_python if engine == "trl" else sys.executable
    module = ["benchmarks.training_steps", engine] if task == "step" else ["benchmarks.training_children", engine, task]
    command = [python, "-m", *module, json.dumps(asdict(work))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    print(f"{engine} {task}, vocabulary {work.vocab_size}", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{engine} {task} failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    numbers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def show_speed(task: str, work: Work, pairs: list[dict[str, Any]]) -> None:
    """Seconds of a step, tokens a second, and the ratio with its spread."""
    tokens = [step_tokens(work, step) for step in range(1, work.steps + 1)]
    ours = [statistics.median(pair["ours"]["seconds"]) for pair in pairs]
    theirs = [statistics.median(pair["trl"]["seconds"]) for pair in pairs]
    ratios = sorted(their / our for our, their in zip(ours, theirs, strict=True))
    mean = statistics.mean(tokens)
    print(
        f"{task}: step {statistics.median(ours):.2f} s ours, {statistics.median(theirs):.2f} s TRL; "
        f"{mean / statistics.median(ours):.0f} and {mean / statistics.median(theirs):.0f} tokens/s; "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), goal {GOALS[task]}; "
        f"first loss {pairs[0]['ours']['losses'][0]:.5f} and {pairs[0]['trl']['losses'][0]:.5f}, "
        f"gradient norm {pairs[0]['ours']['grad_norms'][0]:.5f} and {pairs[0]['trl']['grad_norms'][0]:.5f}",
        flush=True,
    )


def show_steps(pairs: list[dict[str, Any]]) -> None:
    """The parts of a whole GRPO step: seconds per 1,000 response tokens, and the ratio with its spread."""
    for part in PARTS:
        taken = [
            {engine: statistics.median(step[part] for step in pair[engine]["steps"]) for engine in ("ours", "trl")}
            for pair in pairs
        ]
        ratios = sorted(pair["trl"] / pair["ours"] for pair in taken)
        ours, theirs = (statistics.median(pair[engine] for pair in taken) for engine in ("ours", "trl"))
        print(
            f"{part}: {ours:.2f} s ours, {theirs:.2f} s TRL per 1,000 response tokens; "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


def show_memory(task: str, pairs: list[dict[str, Any]]) -> None:
    """Peak memory above what the process held before training, ours and TRL's."""
    added = {
        engine: statistics.median(pair[engine]["peak"] - pair[engine]["before"] for pair in pairs)
        for engine in ("ours", "trl")
    }
    whole = {engine: statistics.median(pair[engine]["peak"] for pair in pairs) for engine in ("ours", "trl")}
    print(
        f"memory, {task} at a vocabulary of {LARGE_VOCABULARY.vocab_size}: {added['ours']:.2f} GB ours, "
        f"{added['trl']:.2f} GB TRL above the start, ratio {added['ours'] / added['trl']:.2f}, goal {MEMORY_GOAL}; "
        f"whole processes {whole['ours']:.2f} and {whole['trl']:.2f} GB",
        flush=True,
    )


def show_scaling(label: str, pairs: list[dict[str, Any]]) -> None:
    """One line of the scaling table."""
    ours, theirs = pairs[0]["ours"], pairs[0]["trl"]
    seconds = [statistics.median(engine["seconds"]) for engine in (ours, theirs)]
    added = [engine["peak"] - engine["before"] for engine in (ours, theirs)]
    print(
        f"{label}: {seconds[0]:.2f} s ours, {seconds[1]:.2f} s TRL, {seconds[1] / seconds[0]:.1f} times; "
        f"{added[0]:.2f} and {added[1]:.2f} GB, {added[0] / added[1]:.2f} times",
        flush=True,
    )


def step_tokens(work: Work, step: int) -> int:
    """Tokens of an optimizer batch, every prompt counted with each of its responses."""
    prompts = sum(len(prompt) for prompt in make_prompts(work)) * work.group_size
    return prompts + sum(len(response) for response in make_responses(work, step))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has trl")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(TASKS))
    parser.add_argument("--steps", type=int, help="measured steps of a process")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    unknown = set(options.only) - set(TASKS)
    if unknown:
        parser.error(f"unknown parts {sorted(unknown)}: take {', '.join(TASKS)}")
    if options.steps is not None:
        for name in GOALS:
            SIZES[name] = replace(SIZES[name], steps=options.steps)
    return options


if __name__ == "__main__":
    main()
