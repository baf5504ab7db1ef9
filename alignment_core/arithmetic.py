"""Synthetic word problems in GSM8K's raw format: a chain of one to a few small steps, told as a story.

A chain is a start (or packs of several) followed by additions, subtractions and, at the end, a price:
`12-2*3` means ((12 - 2) * 3), worked from the left. Its expression alone decides its split, so that no
dev or test problem is met in training or in the pretraining corpus in any wording, whatever the seed.
"""

import random
from dataclasses import dataclass

from alignment_core.config import ArithmeticConfig, Split
from alignment_core.gold_answers import split_gsm8k
from alignment_core.prompts import render
from alignment_core.records import Problem
from alignment_core.seeding import derive_seed
from alignment_core.traces import strict_trace, trace

NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lily", "Max", "Zoe", "Leo", "Ella", "Jack", "Nina")
ITEMS = ("cards", "apples", "books", "coins", "shells", "pens", "cups", "balls", "plums", "rings", "stamps", "toys")
OPENINGS = ("{name} has {n} {items}.", "{name} starts with {n} {items}.", "{name} owns {n} {items}.")
PACKS = ("{name} has {n} bags of {m} {items}.", "{name} buys {n} boxes of {m} {items}.")
GAINS = ("{name} gets {n} more.", "{name} finds {n} more.", "{name} buys {n} more.")
LOSSES = ("{name} loses {n}.", "{name} gives away {n}.", "{name} drops {n}.")
PRICES = ("Each costs {n} dollars. How many dollars in all?", "They sell at {n} dollars each. How many dollars?")
QUESTIONS = ("How many {items} now?", "How many {items} does {name} have?")

WRONG_ENDINGS = (
    " #### {answer}",
    " The answer is {answer}.",
    " </think>\n<answer> {answer} </answer>",
    " <answer> {answer} </answer>",
    " </think> The answer is {answer}.",
    " </think><answer> {answer} </answer>",
)
"""Ways a trace can miss the strict format, each a little differently."""

START_RANGE, PACK_RANGE, PER_PACK_RANGE, CHANGE_RANGE, PRICE_RANGE = (2, 20), (2, 9), (2, 5), (2, 9), (2, 5)
PACKS_SHARE, PRICE_SHARE = 0.3, 0.25
TEST_PERCENT, DEV_PERCENT = 20, 10
LARGEST_SLIP = 3
TRIES = 2000


@dataclass(frozen=True)
class Chain:
    """Numbers n₀ … n_k and the k operations between them, worked from the left."""

    numbers: tuple[int, ...]
    operations: str
    """One of `+ - *` per step."""
    packs: bool
    """The first step is n₀ packs of n₁ items."""
    price: bool
    """The last step is a price: the answer is in dollars."""

    @property
    def expression(self) -> str:
        """`12-2*3`: operations and numbers, which is all that decides the split."""
        later = zip(self.operations, self.numbers[1:], strict=True)
        return str(self.numbers[0]) + "".join(f"{sign}{number}" for sign, number in later)

    def totals(self, slip: tuple[int, int] | None = None) -> list[int]:
        """Running totals, the start included; `slip` (step index, error) makes one step wrong and carries it on."""
        totals = [self.numbers[0]]
        for index, (sign, number) in enumerate(zip(self.operations, self.numbers[1:], strict=True)):
            error = slip[1] if slip is not None and slip[0] == index else 0
            totals.append(_apply(totals[-1], sign, number) + error)
        return totals

    @property
    def answer(self) -> int:
        """The last total."""
        return self.totals()[-1]


@dataclass(frozen=True)
class WordProblem:
    """A chain in one wording."""

    chain: Chain
    name: str
    items: str
    question: str

    def raw_answer(self, slip: tuple[int, int] | None = None) -> str:
        """Solution in GSM8K's raw format; `slip` as in `Chain.totals`."""
        totals = self.chain.totals(slip)
        steps = zip(totals, self.chain.operations, self.chain.numbers[1:], totals[1:], strict=False)
        lines = [f"{a}{sign}{b}=<<{a}{sign}{b}={result}>>{result} {self.items}." for a, sign, b, result in steps]
        if self.chain.price:
            lines[-1] = lines[-1].removesuffix(f"{self.items}.") + "dollars."
        return "\n".join([*lines, f"#### {totals[-1]}"])


def _apply(total: int, sign: str, number: int) -> int:
    if sign == "*":
        return total * number
    return total + number if sign == "+" else total - number


def split_of(chain: Chain) -> Split:
    """The split a chain belongs to, by a hash of operations and numbers: 20 % test, 10 % dev, the rest train."""
    bucket = derive_seed("arithmetic split", chain.expression) % 100
    if bucket < TEST_PERCENT:
        return "test"
    return "dev" if bucket < TEST_PERCENT + DEV_PERCENT else "train"


def generate_splits(
    config: ArithmeticConfig, template: str, seed: int
) -> tuple[list[Problem], list[Problem], list[Problem]]:
    """Train, dev and test of the sizes asked for, no two questions equal; train has traces, the others none.

    `meta`: `steps`, `expression`, and for train `quality`, of the trace: `right`, `wrong` (one slip carried on, strict
    format) or `unformatted` (right, but not in the strict format), in exactly the shares of the config. The gold is
    right in every case. Raises ValueError if the shares exceed 1 or `max_total` leaves too few problems.
    """
    if config.wrong_trace_share + config.unformatted_trace_share > 1:
        raise ValueError("arithmetic.wrong_trace_share and unformatted_trace_share sum to more than 1: lower them")
    train = _distinct(config, "train", config.train, seed)
    n_wrong = round(config.train * config.wrong_trace_share)
    n_unformatted = round(config.train * config.unformatted_trace_share)
    rng = random.Random(derive_seed(seed, "arithmetic traces"))
    qualities = shuffled_labels({"wrong": n_wrong, "unformatted": n_unformatted}, config.train, "right", rng)
    traced = [
        _traced(_problem(problem, "train", index, template), problem, quality, template, rng)
        for index, (problem, quality) in enumerate(zip(train, qualities, strict=True))
    ]
    dev = [_problem(p, "dev", i, template) for i, p in enumerate(_distinct(config, "dev", config.dev, seed))]
    test = [_problem(p, "test", i, template) for i, p in enumerate(_distinct(config, "test", config.test, seed))]
    return traced, dev, test


def shuffled_labels(counts: dict[str, int], total: int, rest: str, rng: random.Random) -> list[str]:
    """`total` labels in random order: each name its count of times, `rest` for what remains."""
    labels = [name for name, count in counts.items() for _ in range(count)][:total]
    labels += [rest] * (total - len(labels))
    rng.shuffle(labels)
    return labels


def draw_problem(config: ArithmeticConfig, split: Split, rng: random.Random, steps: int | None = None) -> WordProblem:
    """A problem of one split, of `steps` steps, by default drawn by `step_shares`.

    Raises ValueError where `max_total` leaves none.
    """
    if steps is None:
        steps = rng.choices(range(1, len(config.step_shares) + 1), weights=config.step_shares)[0]
    for _ in range(TRIES):
        chain = _draw_chain(steps, rng)
        if max(chain.totals()) <= config.max_total and min(chain.totals()) > 0 and split_of(chain) == split:
            return _worded(chain, rng)
    raise ValueError(f"no {split} problem of {steps} steps within arithmetic.max_total {config.max_total}: raise it")


def slipped_answer(problem: WordProblem, rng: random.Random) -> str:
    """Raw answer with one wrong step carried on; the final answer differs from the right one."""
    index = rng.randrange(len(problem.chain.operations))
    errors = [error for error in range(-LARGEST_SLIP, LARGEST_SLIP + 1) if error != 0]
    # Totals stay positive, as they do in every problem; a positive error always leaves them so.
    slips = [(index, error) for error in errors if min(problem.chain.totals((index, error))) > 0]
    return problem.raw_answer(rng.choice(slips))


def reasoning_and_answer(raw_answer: str) -> tuple[str, str]:
    """One-line reasoning without calculator marks, and the answer, of a raw GSM8K answer."""
    reasoning, answer = split_gsm8k(raw_answer)
    return reasoning.replace("\n", " "), answer


def _distinct(config: ArithmeticConfig, split: Split, count: int, seed: int) -> list[WordProblem]:
    """`count` problems with different questions, their numbers of steps in the shares of the config."""
    rng = random.Random(derive_seed(seed, "arithmetic", split))
    shares = [share / sum(config.step_shares) for share in config.step_shares]
    counts = {str(steps): round(count * share) for steps, share in enumerate(shares, 1)}
    found: dict[str, WordProblem] = {}
    for steps in shuffled_labels(counts, count, str(shares.index(max(shares)) + 1), rng):
        for _ in range(TRIES):
            problem = draw_problem(config, split, rng, int(steps))
            if problem.question not in found:
                found[problem.question] = problem
                break
        else:
            raise ValueError(
                f"found only {len(found)} of {count} different {split} problems: raise arithmetic.max_total or lower "
                f"arithmetic.{split}"
            )
    return list(found.values())


def _draw_chain(steps: int, rng: random.Random) -> Chain:
    """A random chain; its totals may be out of range."""
    packs = rng.random() < PACKS_SHARE
    price = rng.random() < PRICE_SHARE and steps - packs >= 1
    operations = "*" * packs + "".join(rng.choice("+-") for _ in range(steps - packs - price)) + "*" * price
    numbers = [rng.randint(*(PACK_RANGE if packs else START_RANGE))]
    for index in range(steps):
        ends = price and index == steps - 1
        limits = PER_PACK_RANGE if packs and index == 0 else PRICE_RANGE if ends else CHANGE_RANGE
        numbers.append(rng.randint(*limits))
    return Chain(tuple(numbers), operations, packs, price)


def _worded(chain: Chain, rng: random.Random) -> WordProblem:
    name, items = rng.choice(NAMES), rng.choice(ITEMS)
    numbers, operations = chain.numbers, chain.operations
    if chain.packs:
        parts = [rng.choice(PACKS).format(name=name, items=items, n=numbers[0], m=numbers[1])]
    else:
        parts = [rng.choice(OPENINGS).format(name=name, items=items, n=numbers[0])]
    told = range(int(chain.packs), len(operations) - int(chain.price))
    for index in told:
        wordings = GAINS if operations[index] == "+" else LOSSES
        parts.append(rng.choice(wordings).format(name=name, n=numbers[index + 1]))
    closing = PRICES if chain.price else QUESTIONS
    parts.append(rng.choice(closing).format(name=name, items=items, n=numbers[-1]))
    return WordProblem(chain, name, items, " ".join(parts))


def _problem(problem: WordProblem, split: Split, index: int, template: str) -> Problem:
    return Problem(
        id=f"{split}/{index + 1:05d}",
        question=problem.question,
        prompt=render(template, problem.question),
        ground_truth=str(problem.chain.answer),
        meta={"steps": len(problem.chain.operations), "expression": problem.chain.expression},
    )


def _traced(problem: Problem, source: WordProblem, quality: str, template: str, rng: random.Random) -> Problem:
    raw = slipped_answer(source, rng) if quality == "wrong" else source.raw_answer()
    reasoning, answer = reasoning_and_answer(raw)
    if quality == "unformatted":
        text = wrongly_ended(reasoning, answer, template, rng.choice(WRONG_ENDINGS))
    else:
        text = strict_trace(reasoning, answer, template)
    return problem.model_copy(update={"trace": text, "meta": {**problem.meta, "quality": quality}})


def wrongly_ended(reasoning: str, answer: str, template: str, ending: str) -> str:
    """A trace that ends in one of `WRONG_ENDINGS`."""
    return trace(reasoning, ending.format(answer=answer), template)
