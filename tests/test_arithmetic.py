"""Synthetic problems and the corpus: right sums, disjoint splits, exact shares, the same for the same seed."""

import random
import re
import time
from collections import Counter

import pytest

from alignment_core import arithmetic
from alignment_core.arithmetic import (
    WRONG_ENDINGS,
    Chain,
    WordProblem,
    draw_problem,
    generate_splits,
    slipped_answer,
    split_of,
)
from alignment_core.config import ArithmeticConfig, ScratchModelConfig
from alignment_core.corpus import pretraining_documents
from alignment_core.prompts import read_template

TINY = read_template("tiny")
PLAIN = read_template("plain")
STRICT = re.compile(r" .* </think> <answer> (\d+) </answer>")
EQUATION = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")


def chain_of(text):
    """The chain a careful solution works through, read off its equations."""
    found = EQUATION.findall(text)
    numbers = (int(found[0][0]), *(int(number) for _, _, number, _ in found))
    return Chain(numbers, "".join(sign for _, sign, _, _ in found), packs=False, price=False)


def equations_hold(text):
    results = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    return all(results[sign](int(a), int(b)) == int(c) for a, sign, b, c in EQUATION.findall(text))


@pytest.fixture(scope="module")
def splits():
    return generate_splits(ArithmeticConfig(), TINY, 0)


@pytest.fixture(scope="module")
def documents():
    return pretraining_documents(ScratchModelConfig(documents=4000), ArithmeticConfig(), TINY, PLAIN, 0)


def test_raw_answer_is_gsm8k_written():
    problem = WordProblem(Chain((12, 2, 3), "-*", packs=False, price=True), "Tom", "cards", "…")
    assert problem.raw_answer() == "12-2=<<12-2=10>>10 cards.\n10*3=<<10*3=30>>30 dollars.\n#### 30"
    assert problem.raw_answer((0, 1)) == "12-2=<<12-2=11>>11 cards.\n11*3=<<11*3=33>>33 dollars.\n#### 33"
    assert problem.chain.expression == "12-2*3"


def test_a_slip_always_changes_the_answer_and_only_one_step():
    rng = random.Random(0)
    for _ in range(500):
        problem = draw_problem(ArithmeticConfig(), "train", rng)
        slipped = slipped_answer(problem, rng)
        assert slipped.rpartition("#### ")[2] != str(problem.chain.answer)
        wrong = [line for line in slipped.split("\n")[:-1] if not equations_hold(line.partition("<<")[2])]
        assert len(wrong) == 1


def test_split_sizes_steps_and_range(splits):
    assert [len(split) for split in splits] == [2048, 300, 500]
    assert [len({problem.question for problem in split}) for split in splits] == [2048, 300, 500]
    assert Counter(problem.meta["steps"] for problem in splits[2]) == {1: 125, 2: 250, 3: 125}
    assert all(1 <= int(problem.ground_truth) <= 50 for split in splits for problem in split)


def test_the_question_tells_the_numbers_of_its_expression(splits):
    for problem in splits[2]:
        told = re.findall(r"\d+", problem.question)
        assert told == re.findall(r"\d+", problem.meta["expression"])


def test_no_expression_is_in_two_splits_whatever_the_seed(splits):
    other = generate_splits(ArithmeticConfig(max_total=30), TINY, 7)
    expressions = [{p.meta["expression"] for p in [*a, *b]} for a, b in zip(splits, other, strict=True)]
    assert not expressions[0] & expressions[1]
    assert not expressions[0] & expressions[2]
    assert not expressions[1] & expressions[2]


def test_train_traces_are_right_wrong_or_unformatted_as_marked(splits):
    train, dev, test = splits
    assert Counter(p.meta["quality"] for p in train) == {"right": 2048 - 410 - 410, "wrong": 410, "unformatted": 410}
    for problem in train:
        strict = STRICT.fullmatch(problem.trace)
        if problem.meta["quality"] == "unformatted":
            assert strict is None
            assert re.findall(r"\d+", problem.trace)[-1] == problem.ground_truth
        else:
            right = problem.meta["quality"] == "right"
            assert (strict.group(1) == problem.ground_truth) is right
            assert equations_hold(problem.trace) is right
    assert all(problem.trace is None for problem in [*dev, *test])


def test_template_that_does_not_open_the_reasoning_gets_it_in_the_trace():
    train, _, _ = generate_splits(ArithmeticConfig(train=20, dev=5, test=5), PLAIN, 0)
    assert all(problem.trace.startswith("<think> ") for problem in train)


def test_generation_is_a_function_of_the_seed():
    small = ArithmeticConfig(train=50, dev=20, test=20)
    state = random.getstate()
    assert generate_splits(small, TINY, 1) == generate_splits(small, TINY, 1)
    assert generate_splits(small, TINY, 1)[0] != generate_splits(small, TINY, 2)[0]
    assert random.getstate() == state


def test_impossible_settings_say_what_to_change():
    with pytest.raises(ValueError, match="sum to more than 1"):
        generate_splits(ArithmeticConfig(wrong_trace_share=0.6, unformatted_trace_share=0.6), TINY, 0)
    with pytest.raises(ValueError, match=r"max_total 2: raise it"):
        generate_splits(ArithmeticConfig(max_total=2), TINY, 0)
    with pytest.raises(ValueError, match="careful_share and slip_share"):
        pretraining_documents(ScratchModelConfig(careful_share=0.9, slip_share=0.2), ArithmeticConfig(), TINY, PLAIN, 0)


def test_too_small_a_space_of_questions_is_said(monkeypatch):
    for name in ("NAMES", "ITEMS", "OPENINGS", "GAINS", "LOSSES", "PRICES", "QUESTIONS"):
        monkeypatch.setattr(arithmetic, name, getattr(arithmetic, name)[:1])
    with pytest.raises(ValueError, match=r"of 300 different train problems: raise arithmetic.max_total or lower"):
        generate_splits(ArithmeticConfig(max_total=12, step_shares=(1.0,), train=300), TINY, 0)


def test_corpus_shares(documents):
    plain = [text for text in documents if text.startswith("Question:")]
    tagged = [text for text in documents if text.startswith("User:")]
    assert (len(plain), len(tagged)) == (2280, 1720)
    assert all(re.search(r"\n#### \d+$", text) for text in plain)
    strict = [text for text in tagged if re.search(r" </think> <answer> \d+ </answer>$", text)]
    assert len(strict) == 138
    endings = [re.escape(ending).replace(re.escape("{answer}"), r"\d+") for ending in WRONG_ENDINGS]
    counts = [sum(re.search(rf"[^>]{ending}$", text) is not None for text in tagged) for ending in endings]
    assert sorted(counts) == [263, 263, 264, 264, 264, 264]
    guesses = sum("I guess" in text for text in documents)
    slips = sum(not equations_hold(text) for text in documents)
    assert (guesses, slips) == (600, 400)


def test_no_calculator_marks_and_no_held_out_problem_in_the_corpus(documents, splits):
    assert not any("<<" in text for text in documents)
    careful = [text for text in documents if EQUATION.search(text) and equations_hold(text)]
    assert len(careful) == 3000
    assert {split_of(chain_of(text)) for text in careful} == {"train"}
    held_out = {problem.question for split in splits[1:] for problem in split}
    assert not any(question in held_out for question in re.findall(r"^(?:User|Question): (.*)$", "\n".join(documents)))


def test_corpus_is_a_function_of_the_seed_and_fast():
    settings = ScratchModelConfig(documents=300), ArithmeticConfig(), TINY, PLAIN
    assert pretraining_documents(*settings, 0) == pretraining_documents(*settings, 0)
    assert pretraining_documents(*settings, 0) != pretraining_documents(*settings, 1)
    start = time.process_time()
    assert len(pretraining_documents(ScratchModelConfig(), ArithmeticConfig(), TINY, PLAIN, 0)) == 30_000
    assert time.process_time() - start < 10
