"""Problems of a study: read or generated, split by seed, with traces to imitate and a leakage report.

`prepare` is the entry. A split is a function of the source and the seed alone; ids keep the split a problem was
published in, so that they are stable across re-splits.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from alignment_core import arithmetic, countdown, leakage
from alignment_core.config import DataConfig
from alignment_core.problem_sources import RawRow, read_rows
from alignment_core.records import Problem, Record
from alignment_core.row_parsers import Parser, any_parser, gsm8k_parser, parse_math, to_problem
from alignment_core.seeding import derive_seed

SPLIT_NAMES = {"train", "test", "validation", "val", "dev"}
COUNTDOWN_TEST_SHARE = 4
"""One in so many Countdown problems is a test problem (official split)."""

Note = dict[str, str | int]


class Prepared(Record):
    """Problems by split, traces for SFT, and what a reader should know about them."""

    train: list[Problem]
    dev: list[Problem]
    """Held out of train for tuning; empty only if `dev_size` is 0."""
    test: list[Problem]
    traces: list[Problem]
    """Problems with a trace: the train problems' own solutions, or the external set without held-out questions."""
    leakage: dict[str, JsonValue]
    """Repeated questions by normalisation (see `leakage.report`); `held_out_traces` counts traces left out."""
    notes: list[Note]
    """Rows that needed care: source, line, what was found, what was done."""


@dataclass(frozen=True)
class Splits:
    """Train, dev and test before limits."""

    train: list[Problem]
    dev: list[Problem]
    test: list[Problem]


def prepare(config: DataConfig, template: str, seed: int) -> Prepared:
    """Read or generate the problems, render prompts, split, fit traces, and report repeated questions.

    `limit_train` and `limit_test` keep the first problems of their split, after splitting. Traces of an external set
    whose question is a dev or test problem (case and white space aside) are left out, and noted; train problems that
    recur in test stay where the source put them, and are reported. Raises ValueError, naming file and line, for
    malformed rows, and for duplicate ids or an empty split.
    """
    notes: list[Note] = []
    splits = _splits(config, template, seed, notes)
    train, test = splits.train[: config.limit_train], splits.test[: config.limit_test]
    _require_distinct_ids([*splits.train, *splits.dev, *splits.test])
    for name, problems in (("train", train), ("test", test)):
        if not problems:
            raise ValueError(f"the {name} split is empty: give more problems, or smaller sizes for the other splits")
    traces, left_out = _traces(config, template, train, splits, notes)
    found = leakage.report({"train": train, "dev": splits.dev, "test": test})
    return Prepared(
        train=train,
        dev=splits.dev,
        test=test,
        traces=traces,
        leakage={**found, "held_out_traces": left_out},
        notes=notes,
    )


def load_problems(
    source: str, kind: str, split: str, template: str, notes: list[Note], keep_calculator_marks: bool = False
) -> list[Problem]:
    """Problems of one split of a source, ids `SPLIT/…`, every row kept; what needed care is appended to `notes`.

    `kind` is `gsm8k`, `math` or `jsonl` (which goes by the fields of each row).
    """
    parsers: dict[str, Parser] = {
        "gsm8k": gsm8k_parser(keep_calculator_marks),
        "math": parse_math,
        "jsonl": any_parser(keep_calculator_marks),
    }
    rows = read_rows(source, split, all_configs=kind == "math")
    return _distinct(rows, [_problem(row, parsers[kind], split, template, notes) for row in rows])


def load_traces(
    source: str, template: str, notes: list[Note], held_out: Mapping[str, str], keep_calculator_marks: bool = False
) -> tuple[list[Problem], int]:
    """Traces of an external set, each as written, and how many were left out because their question is held out.

    `held_out` maps normalised questions to problem ids (`leakage.held_out_questions`). Exact duplicates are kept;
    they, rows without a trace and the rows left out are noted.
    """
    parser = any_parser(keep_calculator_marks)
    rows = read_rows(source, "train")
    problems = _distinct(rows, [_problem(row, parser, "traces", template, notes) for row in rows])
    first: dict[tuple[str, str], int] = {}
    kept: list[Problem] = []
    left_out = 0
    for row, problem in zip(rows, problems, strict=True):
        match = held_out.get(leakage.case_and_space_free(problem.question))
        if problem.trace is None:
            notes.append(_note(row, "row has no trace", "left out of the traces"))
        elif match is not None:
            notes.append(_note(row, f"asks the held-out problem {match}", "left out of the traces"))
            left_out += 1
        else:
            line = first.setdefault((problem.prompt, problem.trace), row.line)
            if line != row.line:
                notes.append(_note(row, f"same prompt and response as line {line}", "kept"))
            kept.append(problem)
    return kept, left_out


def _problem(row: RawRow, parser: Parser, split: str, template: str, notes: list[Note]) -> Problem:
    parsed = parser(row)
    notes.extend(_note(row, what, done) for what, done in parsed.care)
    problem = to_problem(parsed, f"{row.line:05d}", template)
    head, _, rest = problem.id.partition("/")
    own = rest if rest and head in SPLIT_NAMES else problem.id
    # The course's files call every row `test/…`; the file a row stands in knows better.
    return problem.model_copy(update={"id": f"{split}/{own}"})


def _note(row: RawRow, what: str, done: str) -> Note:
    return {"source": row.label, "line": row.line, "what": what, "done": done}


def _distinct(rows: Sequence[RawRow], problems: list[Problem]) -> list[Problem]:
    """The problems, or ValueError naming both rows that share an id."""
    seen: dict[str, RawRow] = {}
    for row, problem in zip(rows, problems, strict=True):
        if problem.id in seen:
            raise ValueError(
                f"id {problem.id!r} occurs twice, at {seen[problem.id].where} and {row.where}: "
                "give each row an id of its own, or none at all"
            )
        seen[problem.id] = row
    return problems


def _require_distinct_ids(problems: Sequence[Problem]) -> None:
    if len({problem.id for problem in problems}) != len(problems):
        raise ValueError("train and test share problem ids: data.train and data.test must not be the same problems")


def _splits(config: DataConfig, template: str, seed: int, notes: list[Note]) -> Splits:
    if config.arithmetic is not None:
        return Splits(*arithmetic.generate_splits(config.arithmetic, template, seed))
    if config.kind == "countdown":
        pool = countdown.generate(config.countdown_size, template, seed)
        if config.split == "resplit":
            return _resplit(pool, config.resplit_sizes, seed)
        n_test = len(pool) // COUNTDOWN_TEST_SHARE
        return _cut_dev(pool[n_test:], pool[:n_test], config.dev_size, seed)
    train, test = _loaded(config, template, notes)
    if config.split == "resplit":
        return _resplit([*train, *test], config.resplit_sizes, seed)
    if config.test is None:
        raise ValueError("data.split 'official' needs data.test: give it, or take data.split: resplit")
    return _cut_dev(train, test, config.dev_size, seed)


def _loaded(config: DataConfig, template: str, notes: list[Note]) -> tuple[list[Problem], list[Problem]]:
    if config.train is None:
        raise ValueError(f"data.kind {config.kind!r} needs data.train: a local file or a hub id")
    marks = config.keep_calculator_marks
    train = load_problems(config.train, config.kind, "train", template, notes, marks)
    if config.test is None:
        return train, []
    return train, load_problems(config.test, config.kind, "test", template, notes, marks)


def _cut_dev(train: list[Problem], test: list[Problem], dev_size: int, seed: int) -> Splits:
    """Hold `dev_size` problems out of train, drawn by seed; both parts keep the source's order."""
    if dev_size >= len(train):
        raise ValueError(f"data.dev_size {dev_size} leaves no train problem of {len(train)}: lower it")
    rng = random.Random(derive_seed(seed, "dev"))
    chosen = set(rng.sample(range(len(train)), dev_size))
    return Splits(
        [problem for index, problem in enumerate(train) if index not in chosen],
        [problem for index, problem in enumerate(train) if index in chosen],
        test,
    )


def _resplit(pool: list[Problem], sizes: tuple[int, int, int], seed: int) -> Splits:
    """Shuffle the whole pool by seed and deal it out; problems beyond the sizes are not used."""
    if sum(sizes) > len(pool):
        raise ValueError(f"data.resplit_sizes {sizes} want {sum(sizes)} problems, there are {len(pool)}: lower them")
    _require_distinct_ids(pool)
    shuffled = random.Random(derive_seed(seed, "resplit")).sample(pool, len(pool))
    first, second = sizes[0], sizes[0] + sizes[1]
    return Splits(shuffled[:first], shuffled[first:second], shuffled[second : sum(sizes)])


def _traces(
    config: DataConfig, template: str, train: Sequence[Problem], splits: Splits, notes: list[Note]
) -> tuple[list[Problem], int]:
    """The SFT traces, and how many were left out because dev or test asks their question."""
    if config.traces is None:
        return [problem for problem in train if problem.trace is not None], 0
    held_out = leakage.held_out_questions(splits.dev, splits.test)
    kept, left_out = load_traces(config.traces, template, notes, held_out, config.keep_calculator_marks)
    if not kept:
        raise ValueError(f"{config.traces} has no trace outside dev and test: give traces of training problems")
    return kept, left_out
