"""One process of data-parallel training: `python tests/parallel_training.py OUT`, started W times.

Trains by every loop; process 0 writes each one's weights, and all write their records, into the folder OUT.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from test_dpo import CONFIG as DPO_CONFIG
from test_policy_gradient import CONFIG, OFF_POLICY, PROBLEMS, SAMPLING, TOKENIZER, likes_low_letters
from test_sft import CONFIG as SFT_CONFIG
from test_sft import EXAMPLES
from tiny_loops import PAIRS
from tiny_models import tiny_model
from transformers import PreTrainedModel

from alignment_core.dpo import train_dpo
from alignment_core.models import tensors_by_name
from alignment_core.policy_gradient import train_grpo
from alignment_core.processes import join_processes, leave_processes, process_count, process_rank
from alignment_core.runs import MemoryRun
from alignment_core.sft import train_sft

GRPO_LOOPS = {
    "grpo": CONFIG,
    "off_policy": OFF_POLICY,
    "kl": CONFIG.model_copy(update={"kl_coefficient": 0.5, "dynamic_sampling_rounds": 1}),
}
LOOPS = ("sft", "dpo", *GRPO_LOOPS)
SMALL = {"micro_batch_tokens": 24}
"""Small micro-batches, so that every process has some."""


def train(loop: str) -> tuple[PreTrainedModel, MemoryRun]:
    """The trained model and its record."""
    model, run = tiny_model(TOKENIZER), MemoryRun()
    if loop == "sft":
        train_sft(model, TOKENIZER, EXAMPLES, SFT_CONFIG.model_copy(update=SMALL), run, seed=3)
    elif loop == "dpo":
        train_dpo(model, TOKENIZER, PAIRS, DPO_CONFIG.model_copy(update=SMALL), run, seed=3)
    else:
        config = GRPO_LOOPS[loop].model_copy(update=SMALL)
        train_grpo(model, TOKENIZER, PROBLEMS, config, SAMPLING, likes_low_letters, run, seed=3)
    return model, run


def main() -> None:
    """Train by every loop, and keep the results."""
    out = Path(sys.argv[1])
    join_processes()
    for loop in LOOPS:
        model, run = train(loop)
        if process_rank() == 0:
            weights = {name: weight.contiguous() for name, weight in tensors_by_name(model).items()}
            save_file(weights, out / f"{loop}.safetensors")
        numbers = {"processes": process_count(), "points": run.points, "lines": run.lines}
        (out / f"{loop}-{process_rank()}.json").write_text(json.dumps(numbers), encoding="utf-8")
    leave_processes()  # gloo's threads, left to the end of the interpreter, at times abort it


if __name__ == "__main__":
    main()
