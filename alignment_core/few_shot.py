"""Worked examples for few-shot prompts: drawn from the train split by seed, or read from a file.

A solution ends as the reward wants its answer: in tags (`r1_zero`), a box (`question_only`) or as the last number
(`number`). `alignment_core.prompts` puts the examples before a question. All is a function of settings and data.
"""

import random
from collections.abc import Sequence

from alignment_core import gold_answers
from alignment_core.config import RewardName
from alignment_core.leakage import case_and_space_free, held_out_questions
from alignment_core.problems import Note, load_problems
from alignment_core.records import Example, Problem
from alignment_core.rewards import grade_batch
from alignment_core.seeding import derive_seed
from alignment_core.stage_config import FewShotStage

TRACE_TEMPLATE = "{question}<think>"
"""What rows of a file are read under: their solutions become traces begun inside the thinking."""


def find_examples(config: FewShotStage, train: Sequence[Problem], asked: Sequence[Problem]) -> list[Example]:
    """The worked examples of an evaluation over the problems `asked`.

    From the file, its first `shots`; else drawn by seed from `train`: problems whose own trace answers right, and whose
    question is not among those asked (case and white space aside).
    Raises ValueError where there are too few.
    """
    if config.source is not None:
        notes: list[Note] = []
        candidates = load_problems(config.source, "jsonl", "train", TRACE_TEMPLATE, notes)
    else:
        order = random.Random(derive_seed(config.seed, "few_shot"))
        candidates = order.sample(list(train), len(train))
    held_out = held_out_questions(asked)
    examples: list[Example] = []
    for problem in candidates:
        if len(examples) == config.shots:
            break
        if case_and_space_free(problem.question) not in held_out and _is_right(problem):
            examples.append(Example(question=problem.question, response=worked(problem, config.reward)))
    if len(examples) < config.shots:
        where = config.source or "the train split"
        raise ValueError(
            f"{where} has {len(examples)} problems with a right solution that are not asked themselves, and "
            f"evaluation.few_shot.shots is {config.shots}: lower it, or give more in evaluation.few_shot.source"
        )
    return examples


def worked(problem: Problem, reward: RewardName) -> str:
    """A problem's trace as an example for a reward: its reasoning, then its gold answer in the form asked for."""
    trace = (problem.trace or "").lstrip().removeprefix("<think>")
    reasoning = trace.partition("</think>")[0].strip()
    gold = problem.ground_truth
    if reward in {"r1_zero", "countdown"}:
        return f"{reasoning} </think> <answer> {gold} </answer>"
    if reward == "number":
        return f"{reasoning}\nThe answer is {gold}."
    return reasoning if gold_answers.last_boxed(reasoning) else f"{reasoning}\nThe answer is $\\boxed{{{gold}}}$."


def _is_right(problem: Problem) -> bool:
    """Whether the trace is there and its own answer is the gold."""
    if not problem.trace:
        return False
    rewards: tuple[RewardName, ...] = ("r1_zero", "question_only")
    return any(grade_batch([problem.trace], [problem.ground_truth], one)[0].reward == 1 for one in rewards)
