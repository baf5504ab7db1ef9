"""The pretraining corpus of the tiny model: arithmetic word problems, mostly in the wrong format, partly guessed.

It plays the part the web plays for a real base model: the knowledge is there, the format is rare, and noise
(slips and guesses) is left for training to remove. Every problem belongs to the train split of `arithmetic`.
"""

import random

from alignment_core.arithmetic import (
    WRONG_ENDINGS,
    WordProblem,
    draw_problem,
    reasoning_and_answer,
    shuffled_labels,
    slipped_answer,
    wrongly_ended,
)
from alignment_core.config import ArithmeticConfig, ScratchModelConfig
from alignment_core.gold_answers import strip_calculator
from alignment_core.prompts import render
from alignment_core.seeding import derive_seed
from alignment_core.traces import strict_trace


def pretraining_documents(
    scratch: ScratchModelConfig, arithmetic: ArithmeticConfig, template: str, plain_template: str, seed: int
) -> list[str]:
    """`scratch.documents` texts, prompt and response in one, without the end-of-text token.

    Shares are exact up to rounding. A `tagged_share` follows `template`: of these `strict_format_share` end in the
    strict form, the others evenly in six wrong ones. The rest follow `plain_template` and end in `#### n`. In both
    forms `careful_share` reason correctly, `slip_share` carry one wrong step on, the remainder guesses. Raises
    ValueError if those two shares exceed 1.
    """
    if scratch.careful_share + scratch.slip_share > 1:
        raise ValueError("scratch.careful_share and slip_share sum to more than 1: lower one")
    rng = random.Random(derive_seed(seed, "corpus"))
    total = scratch.documents
    endings = _endings(scratch, rng)
    careful, slips = round(total * scratch.careful_share), round(total * scratch.slip_share)
    styles = shuffled_labels({"careful": careful, "slip": min(slips, total - careful)}, total, "guess", rng)
    problems = [draw_problem(arithmetic, "train", rng) for _ in range(total)]
    return [
        _document(problem, _raw_answer(problem, style, arithmetic.max_total, rng), ending, template, plain_template)
        for problem, style, ending in zip(problems, styles, endings, strict=True)
    ]


def _endings(scratch: ScratchModelConfig, rng: random.Random) -> list[str]:
    """How each document ends: `plain`, `strict`, or one of the wrong endings."""
    tagged = round(scratch.documents * scratch.tagged_share)
    strict = round(tagged * scratch.strict_format_share)
    wrong, rest = divmod(tagged - strict, len(WRONG_ENDINGS))
    counts = {ending: wrong + (index < rest) for index, ending in enumerate(WRONG_ENDINGS)}
    return shuffled_labels({"strict": strict, **counts}, scratch.documents, "plain", rng)


def _raw_answer(problem: WordProblem, style: str, max_total: int, rng: random.Random) -> str:
    if style == "careful":
        return problem.raw_answer()
    if style == "slip":
        return slipped_answer(problem, rng)
    guess = rng.randint(1, max_total)
    return f"I guess {guess}.\n#### {guess}"


def _document(problem: WordProblem, raw_answer: str, ending: str, template: str, plain_template: str) -> str:
    if ending == "plain":
        return f"{render(plain_template, problem.question)} {strip_calculator(raw_answer)}"
    reasoning, answer = reasoning_and_answer(raw_answer)
    if ending == "strict":
        text = strict_trace(reasoning, answer, template)
    else:
        text = wrongly_ended(reasoning, answer, template, ending)
    return render(template, problem.question) + text
