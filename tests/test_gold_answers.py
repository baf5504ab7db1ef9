"""Gold answers: boxes, GSM8K lines, and the short answer at the end of a long text."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment_core.gold_answers import is_long, last_answer_tag, last_boxed, plain_number, short_answer, split_gsm8k


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        (r"so $\boxed{8}$.", "8"),
        (r"$\boxed{\frac{1}{2}}$ or rather $\boxed{\frac{\sqrt{3}}{2}}$", r"\frac{\sqrt{3}}{2}"),
        (r"our answer is $\boxed 2$.", "2"),
        (r"$\boxed{\left\{1, 2\right\}}$", r"\left\{1, 2\right\}"),
        (r"$\boxed{\left\{ x}$", r"\left\{ x"),
        (r"\fbox{12}", "12"),
        (r"\boxed{}", ""),
        (r"\boxed{3", None),
        (r"\boxedfoo{3}", None),
        ("nothing here", None),
    ],
)
def test_last_box(text, gold):
    assert last_boxed(text) == gold


@given(st.recursive(st.text("ab1 ", max_size=4), lambda inner: inner.map("{{{}}}".format), max_leaves=5))
def test_last_box_returns_any_balanced_content(content):
    assert last_boxed(r"first \boxed{0}, then \boxed{" + content + "} and } more") == content


def test_gsm8k_answer_splits_and_sheds_its_marks():
    answer = "She sold 48/2 = <<48/2=24>>24 clips.\nIn all <<48+24=72>>72.\n#### 1,072"
    assert split_gsm8k(answer) == ("She sold 48/2 = 24 clips.\nIn all 72.", "1,072")
    assert split_gsm8k(answer, keep_calculator_marks=True)[0].count("<<") == 2


@pytest.mark.parametrize(("written", "read"), [("1,250", "1250"), ("$18.", "18"), ("-3", "-3"), ("7.5", "7.5")])
def test_plain_number(written, read):
    assert plain_number(written) == read


def test_matrices_are_short_and_solutions_are_long():
    assert not is_long("\n\\begin{pmatrix} 0 & 3 \\\\ 0 & -1 \\end{pmatrix}\n")
    assert not is_long("90\\text{ square\nunits}")
    assert is_long("First we add the two numbers, then we halve the sum.")
    assert is_long("We add them.\nThe sum is 4")


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("We add.\n\nFinal Answer: The final answer is $\\frac{3}{4}$. I hope it is correct.", r"\frac{3}{4}"),
        ("#### Step 1\nWe add.\n#### Step 2\nSo it is $\\boxed{7}$.", "7"),
        ("We add 3 and 4.\n#### 7", "7"),
        ("The reason is plain and there is nothing to compute here", None),
    ],
)
def test_short_answer_of_a_solution(text, gold):
    assert short_answer(text) == gold


def test_short_answer_falls_back_to_math_verify():
    pytest.importorskip("math_verify")
    assert short_answer("#### Cost\nAdding everything up gives a total cost of 1250 dollars") == "1250"


def test_missing_math_verify_is_said_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ValueError, match="install math-verify"):
        short_answer("Adding everything up gives a total cost of 1250 dollars")


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("<think> a </think> <answer> 24 </answer>", "24"),
        ("<answer> 1 </answer> no: <answer> 2 </answer>", "2"),
        ("<answer> 3", None),
        ("<answer></answer>", None),
        ("24", None),
    ],
)
def test_the_gold_of_a_tagged_response_is_its_last_answer(text: str, gold: str | None) -> None:
    assert last_answer_tag(text) == gold
