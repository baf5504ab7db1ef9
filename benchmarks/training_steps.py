"""Whole GRPO steps, ours and TRL's, for `benchmarks.training`: `python -m … ENGINE WORK`, JSON out.

A step samples one rollout batch, scores it under the policy that sampled it, and trains on it twice, so that each
engine does all three and their times stand apart. Both sample by themselves, with transformers: one id in ENDING ends a
response, so lengths are geometric, and rewards are the parity of a response's words. The tokens differ, their
distribution does not; seconds are therefore per 1,000 response tokens.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.training_children import LEARNING_RATE, memory, our_budget, prepare_process, trl_settings
from benchmarks.training_work import Work, make_model, make_prompts, make_tokenizer

ENDING = 48
"""One id in so many ends a text."""
UPDATES = 2
"""Optimizer steps on one rollout batch."""
PARTS = ("generation", "log-probs", "update", "step")


def parity(text: str) -> float:
    """The reward: 1 for an odd number of words."""
    return float(len(text.split()) % 2)


def texts_of(work: Work) -> list[str]:
    """The prompts, as words."""
    return [" ".join(f"w{id_}" for id_ in prompt) for prompt in make_prompts(work)]


def ours(work: Work) -> dict[str, Any]:
    """Steps of our loop, by its own metrics."""
    from alignment_core.config import SamplingConfig
    from alignment_core.policy_gradient import train_grpo
    from alignment_core.records import GradedResponse, Problem
    from alignment_core.runs import MemoryRun
    from alignment_core.training_config import GRPOConfig, OptimizerConfig

    def grade(responses: Any, truths: Any) -> list[GradedResponse]:
        rewards = [parity(text) for text in responses]
        return [GradedResponse(format_reward=1, answer_reward=value, reward=value) for value in rewards]

    problems = [Problem(id=f"p{n}", question="", prompt=text, ground_truth="") for n, text in enumerate(texts_of(work))]
    config = GRPOConfig(
        n_grpo_steps=work.steps + 1,
        rollout_batch_size=work.sequences,
        train_batch_size=work.sequences,
        epochs_per_rollout_batch=UPDATES,
        group_size=work.group_size,
        micro_batch_tokens=our_budget(work),
        loss_type="grpo_clip",
        min_tokens=0,
        optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
    )
    sampling = SamplingConfig(max_tokens=work.longest_response, stop=(), batch_size=work.sequences)
    run, before = MemoryRun(), memory()
    train_grpo(model_of(work), make_tokenizer(work), problems, config, sampling, grade, run, 0)
    steps = []
    for _, metrics in run.points[1:]:
        generation = metrics["time/sync"] + metrics["time/generate"] + metrics["time/grade"]
        seconds = (generation, metrics["time/score"], metrics["time/update"] - metrics["time/score"])
        steps.append(per_thousand((*seconds, metrics["time/step"]), metrics["train/tokens"]))
    return {"steps": steps, "tokens": [metrics["train/tokens"] for _, metrics in run.points[1:]], "before": before}


def theirs(work: Work) -> dict[str, Any]:
    """Steps of TRL's GRPOTrainer, its own parts timed where it calls them."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    generation, scoring, lengths = Stopwatch(), Stopwatch(), []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
        lengths.append(sum(map(len, completion_ids)))
        return [parity(text) for text in completions]

    class Clock(TrainerCallback):
        """When each optimizer step begins and ends."""

        def __init__(self) -> None:
            self.moments: list[float] = []

        def on_step_begin(self, *_: object, **__: object) -> None:
            self.moments.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            self.moments.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            **{**trl_settings(work, folder), "max_steps": UPDATES * (work.steps + 1)},
            num_generations=work.group_size,
            num_iterations=UPDATES,
            max_completion_length=work.longest_response,
            beta=0.0,
            loss_type="grpo",
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            shuffle_dataset=False,
        )
        before, clock = memory(), Clock()
        rows = [{"prompt": text} for text in texts_of(work)] * (work.steps + 1)
        trainer = GRPOTrainer(
            model_of(work),
            reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=make_tokenizer(work),
            callbacks=[clock],
        )
        trainer._generate_single_turn = generation.around(trainer._generate_single_turn)
        score = trainer._get_per_token_logps_and_entropies
        timed_score = scoring.around(score)
        trainer._get_per_token_logps_and_entropies = lambda *given, **named: (
            score if torch.is_grad_enabled() else timed_score
        )(*given, **named)
        trainer.train()
    steps = []
    for number in range(1, work.steps + 1):
        whole = clock.moments[2 * UPDATES * (number + 1) - 1] - clock.moments[2 * UPDATES * number]
        generated, scored = generation.seconds[number], scoring.seconds[number]
        steps.append(per_thousand((generated, scored, whole - generated - scored, whole), lengths[number]))
    return {"steps": steps, "tokens": lengths[1:], "before": before}


class Stopwatch:
    """Seconds of every call of what it is put around."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.seconds.append(time.perf_counter() - began)

        return timed


def model_of(work: Work) -> Any:
    """The work's model, which ends one response token in ENDING."""
    return make_model(work, eos=list(range(0, work.vocab_size, ENDING)))


def per_thousand(seconds: tuple[float, ...], tokens: float) -> dict[str, float]:
    """Seconds per 1,000 response tokens, by part."""
    return {part: 1000 * taken / tokens for part, taken in zip(PARTS, seconds, strict=True)}


def main() -> None:
    """Run one engine and print its numbers as the last line."""
    engine, fields = sys.argv[1:]
    prepare_process()
    numbers = {"ours": ours, "trl": theirs}[engine](Work(**json.loads(fields)))
    print(json.dumps(numbers | {"peak": memory()}))


if __name__ == "__main__":
    main()
