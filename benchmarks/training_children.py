"""What `benchmarks.training` runs in processes of its own: `python -m … ENGINE TASK WORK`, JSON out.

ENGINE is `ours` or `trl`, TASK is `sft` or `grpo`, WORK the fields of a `Work` as JSON. A GRPO step here is the update
alone: both engines are given the same responses and rewards.
"""

import json
import os
import resource
import sys
import tempfile
import time
from typing import Any

import torch

from benchmarks.training_work import (
    Work,
    make_model,
    make_prompts,
    make_responses,
    make_rewards,
    make_tokenizer,
)

LEARNING_RATE = 1e-4


def ours_sft(work: Work) -> dict[str, Any]:
    """Optimizer steps of our fine-tuning loop."""
    from alignment_core.batching import TokenSequence
    from alignment_core.runs import MemoryRun
    from alignment_core.sft import train_sft
    from alignment_core.training_config import OptimizerConfig, SFTConfig

    examples = [TokenSequence(prompt, response) for prompt, response in examples_of(work)]
    config = SFTConfig(
        epochs=1,
        batch_size=work.sequences,
        optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
        micro_batch_tokens=our_budget(work),
        max_length=work.longest_prompt + work.longest_response,
    )
    run = MemoryRun()
    before = memory()
    train_sft(make_model(work), make_tokenizer(work), examples, config, run, 0)
    return {
        "seconds": [metrics["time/update"] for _, metrics in run.points][1:],
        "losses": [metrics["train/loss"] for _, metrics in run.points],
        "grad_norms": [metrics["train/grad_norm"] for _, metrics in run.points],
        "before": before,
    }


def ours_grpo(work: Work) -> dict[str, Any]:
    """Updates of our policy-gradient loop on given rollouts."""
    from alignment_core.config import SamplingConfig
    from alignment_core.policy_gradient import train_grpo
    from alignment_core.records import Completion, GradedResponse, Problem
    from alignment_core.runs import MemoryRun
    from alignment_core.training_config import GRPOConfig, OptimizerConfig

    words = {f"p{index}": prompt for index, prompt in enumerate(make_prompts(work))}
    problems = [
        Problem(id=name, question="", prompt=" ".join(f"w{id_}" for id_ in prompt), ground_truth="")
        for name, prompt in words.items()
    ]

    class Given:
        """Answers every request with the work's own response."""

        step = 0

        def sample(self, requests: Any, config: SamplingConfig, *_: object, **__: object) -> list[Completion]:
            """One completion per request."""
            texts, rewards, names = make_responses(work, self.step), make_rewards(work), list(words)
            Given.step += 1
            # Problems come in another order than the other engine's, each with its own responses and rewards.
            places = [
                names.index(request.problem_id) * work.group_size + index % work.group_size
                for index, request in enumerate(requests)
            ]
            return [
                Completion(
                    problem_id=request.problem_id,
                    sample_index=request.sample_index,
                    prompt_ids=request.prompt_ids,
                    response_ids=texts[place],
                    text=str(rewards[place]),
                    finish_reason="eos",
                )
                for request, place in zip(requests, places, strict=True)
            ]

        def update_weights(self, model: object) -> None:
            """Nothing to follow."""

    def grade(responses: Any, truths: Any) -> list[GradedResponse]:
        return [GradedResponse(format_reward=1, answer_reward=float(text), reward=float(text)) for text in responses]

    config = GRPOConfig(
        n_grpo_steps=work.steps + 1,
        rollout_batch_size=work.sequences,
        train_batch_size=work.sequences,
        group_size=work.group_size,
        micro_batch_tokens=our_budget(work),
        loss_type="grpo_clip",
        optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
    )
    run, before = MemoryRun(), memory()
    sampling = SamplingConfig(max_tokens=work.longest_response)
    train_grpo(make_model(work), make_tokenizer(work), problems, config, sampling, grade, run, 0, sampler=Given())
    return {
        "seconds": [metrics["time/update"] for _, metrics in run.points][1:],
        "losses": [metrics["train/loss"] for _, metrics in run.points],
        "grad_norms": [metrics["train/grad_norm"] for _, metrics in run.points],
        "before": before,
    }


def trl_sft(work: Work) -> dict[str, Any]:
    """Optimizer steps of TRL's SFTTrainer on the same examples, loss on the response."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from alignment_core.epochs import batch_indices

    rows = []
    for prompt, response in examples_of(work):
        rows.append({"input_ids": prompt + response, "completion_mask": [0] * len(prompt) + [1] * len(response)})
    # In the order in which our loop takes them.
    rows = [
        rows[index] for step in range(work.steps + 1) for index in batch_indices(len(rows), work.sequences, step, 0)
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            **trl_settings(work, folder),
            max_length=work.longest_prompt + work.longest_response,
            completion_only_loss=True,
        )
        before = memory()
        trainer = SFTTrainer(
            make_model(work), config, train_dataset=Dataset.from_list(rows), processing_class=make_tokenizer(work)
        )
        return timed(trainer) | {"before": before}


def trl_grpo(work: Work) -> dict[str, Any]:
    """Optimizer steps of TRL's GRPOTrainer on the same rollouts, handed in through its `rollout_func`."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    prompts = make_prompts(work)
    texts = [" ".join(f"w{id_}" for id_ in prompt) for prompt in prompts]
    calls = iter(range(work.steps + 2))

    def rollout(asked: list[str], trainer: object) -> dict[str, Any]:
        rows, taken = [texts.index(text) for text in asked], [0] * work.problems
        responses, chosen = make_responses(work, next(calls)), []
        for row in rows:
            chosen.append(responses[row * work.group_size + taken[row]])
            taken[row] += 1
        return {"prompt_ids": [prompts[row] for row in rows], "completion_ids": chosen, "logprobs": None}

    def reward(completions: list[str], **_: object) -> list[float]:
        return make_rewards(work)

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            **trl_settings(work, folder),
            num_generations=work.group_size,
            max_completion_length=work.longest_response,
            beta=0.0,
            loss_type="grpo",
            temperature=1.0,
            shuffle_dataset=False,
        )
        before = memory()
        trainer = GRPOTrainer(
            make_model(work),
            reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts] * (work.steps + 1)),
            processing_class=make_tokenizer(work),
            rollout_func=rollout,
        )
        return timed(trainer) | {"before": before}


def examples_of(work: Work) -> list[tuple[list[int], list[int]]]:
    """Prompts and responses of every optimizer batch."""
    prompts = make_prompts(work)
    return [
        (prompts[index // work.group_size], response)
        for step in range(work.steps + 1)
        for index, response in enumerate(make_responses(work, step))
    ]


def our_budget(work: Work) -> int:
    """Tokens of a micro-batch: as many as the other engine's padded one may hold."""
    return work.rows * (work.longest_prompt + work.longest_response)


def trl_settings(work: Work, folder: str) -> dict[str, Any]:
    """Settings common to both trainers: those of our loops, and nothing that only costs time."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": work.rows,
        "gradient_accumulation_steps": work.sequences // work.rows,
        "max_steps": work.steps + 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
        "seed": 0,
    }


def timed(trainer: Any) -> dict[str, Any]:
    """Train; seconds of each optimizer step after the first."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Times every optimizer step."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: object, **__: object) -> None:
            """Start."""
            self.began = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            """Stop."""
            self.seconds.append(time.perf_counter() - self.began)

    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seconds": clock.seconds[1:],
        "losses": [float(entry["loss"]) for entry in history],
        "grad_norms": [float(entry["grad_norm"]) for entry in history],
    }


def memory() -> float:
    """Highest resident memory of this process so far, 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def prepare_process() -> None:
    """One thread, no hub, no notices; every clock, those of the loops included, counts this process's own time.

    On an idle machine the processor time of one thread is the time that passes. On a shared one the work of others is
    left out, which neighbouring runs would not share evenly.
    """
    time.perf_counter = time.process_time
    os.environ.update({"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"})
    torch.set_num_threads(1)


def main() -> None:
    """Run one engine on one task and print its numbers as the last line."""
    engine, task, fields = sys.argv[1:]
    prepare_process()
    work = Work(**json.loads(fields))
    tasks = {"ours sft": ours_sft, "ours grpo": ours_grpo, "trl sft": trl_sft, "trl grpo": trl_grpo}
    numbers = tasks[f"{engine} {task}"](work)
    print(json.dumps(numbers | {"peak": memory()}))


if __name__ == "__main__":
    main()
