"""Countdown: reach a target from a few numbers, each used once, with + - * /.

The ground truth is one expression that solves the problem, e.g. `(7 - 4) * 8`; it tells numbers and target, so the
`countdown` reward (`solves`) needs nothing else. The common graders would accept any expression worth the target,
whichever numbers it uses, which a policy finds soon. `meta` carries `numbers` (space-separated) and `target`.
"""

import ast
import random
import re
from collections.abc import Sequence
from fractions import Fraction

from alignment_core.prompts import render
from alignment_core.records import Problem
from alignment_core.seeding import derive_seed
from alignment_core.traces import strict_trace

COUNTS = (3, 4)
LARGEST_NUMBER = 25
LARGEST_TARGET = 100
LARGEST_PARTIAL = 200
LONGEST_ANSWER = 200
TRIES_PER_PROBLEM = 1000
EXPRESSION = re.compile(r"[0-9+\-*/() ]+")

Term = tuple[int, str]
"""Value and the expression it comes from."""


def generate(size: int, template: str, seed: int) -> list[Problem]:
    """`size` distinct problems, each with a solution and a worked trace; the same for the same seed.

    Raises ValueError if the number space does not hold that many.
    """
    rng = random.Random(derive_seed(seed, "countdown"))
    seen: set[tuple[tuple[int, ...], int]] = set()
    problems: list[Problem] = []
    for _ in range(size * TRIES_PER_PROBLEM):
        if len(problems) == size:
            return problems
        numbers = [rng.randint(1, LARGEST_NUMBER) for _ in range(rng.choice(COUNTS))]
        solution = _combine(numbers, rng)
        if solution is None:
            continue
        (target, _), _ = solution
        key = (tuple(sorted(numbers)), target)
        if target not in numbers and 10 <= target <= LARGEST_TARGET and key not in seen:
            seen.add(key)
            problems.append(_problem(len(problems) + 1, numbers, solution, template))
    if len(problems) == size:
        return problems
    raise ValueError(f"found only {len(problems)} distinct Countdown problems of {size}: lower data.countdown_size")


def is_solution(answer: str, numbers: Sequence[int], target: int) -> bool:
    """Whether `answer` is an expression in + - * / over each of `numbers` exactly once, worth `target`.

    Safe and bounded for any text: it is parsed, never run, and nothing beyond 200 characters is read.
    """
    return _read(answer) == (Fraction(target), sorted(numbers))


def solves(answer: str, gold: str) -> bool:
    """Whether `answer` solves the problem that the expression `gold` solves; as safe as `is_solution`."""
    wanted = _read(gold)
    return wanted is not None and _read(answer) == wanted


def _read(text: str) -> tuple[Fraction, list[int]] | None:
    """Value and sorted numbers of an expression; None for any other text."""
    if len(text) > LONGEST_ANSWER or not EXPRESSION.fullmatch(text):
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return None
    used: list[int] = []
    value = _value(tree, used)
    return None if value is None else (value, sorted(used))


def _value(node: ast.expr, used: list[int]) -> Fraction | None:
    """Exact value of the tree, its numbers appended to `used`; None where it has none or is not arithmetic."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        return None
    left, right = _value(node.left, used), _value(node.right, used)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    return left / right if isinstance(node.op, ast.Div) and right else None


def _combine(numbers: Sequence[int], rng: random.Random) -> tuple[Term, list[str]] | None:
    """Join terms two by two at random until one is left: (value, expression) and the steps in words."""
    pool: list[Term] = [(number, str(number)) for number in numbers]
    steps: list[str] = []
    while len(pool) > 1:
        rng.shuffle(pool)
        left, right = pool.pop(), pool.pop()
        options = [(sign, value) for sign, value in _results(left[0], right[0]) if 0 < value <= LARGEST_PARTIAL]
        if not options:
            return None
        sign, value = rng.choice(options)
        steps.append(f"{left[0]} {sign} {right[0]} = {value}.")
        pool.append((value, f"{_enclosed(left[1])} {sign} {_enclosed(right[1])}"))
    return pool[0], steps


def _results(left: int, right: int) -> list[tuple[str, int]]:
    """What the four operations make of two positive integers, whole results only."""
    exact = [("/", left // right)] if left % right == 0 else []
    return [("+", left + right), ("-", left - right), ("*", left * right), *exact]


def _enclosed(expression: str) -> str:
    return expression if expression.isdigit() else f"({expression})"


def _problem(index: int, numbers: Sequence[int], solution: tuple[Term, list[str]], template: str) -> Problem:
    (target, expression), steps = solution
    listed = ", ".join(map(str, numbers))
    question = (
        f"Make {target} from the numbers {listed}. Use each number exactly once, with +, -, * and / and parentheses. "
        "Give the expression."
    )
    return Problem(
        id=f"countdown/{index:05d}",
        question=question,
        prompt=render(template, question),
        ground_truth=expression,
        trace=strict_trace(" ".join(steps), expression, template),
        meta={"numbers": " ".join(map(str, numbers)), "target": target},
    )
