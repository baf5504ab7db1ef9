r"""What the thorough verdict must keep apart: left sides, repeated answers, compositions, ranges, marks, runaways.

Run: pytest tests/test_thorough_forms.py
"""

import pytest

from alignment_core import thorough
from alignment_core.thorough import compare_thoroughly, differ_in_marks, is_runaway, judge_forms
from alignment_core.verdicts import Question, Verdict


def both_ways(answer: str, gold: str) -> set[bool | None]:
    return {judge_forms(answer, gold), judge_forms(gold, answer)}


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"3=5", "x-y=5"),
        (r"\sin x=5", "x-y=5"),
        ("y-x=5", "x-y=5"),
        ("x-y=z", "x^3=z"),
        ("x+y=5, x+y=1", "x-y=5, x+y=1"),
        (r"\text{area of square}=5", r"\text{area of circle}=5"),
        (r"\text{area}=5", r"\text{area of circle}=5"),
        (r"\text{girls - boys}=5", r"\text{boys - girls}=5"),
        (r"\text{x-y}=5", r"\text{y-x}=5"),
        ("a+b=5", r"\text{number of cats}=5"),
        (r"\frac{x}{y}=1", "x=y"),
    ],
)
def test_equal_right_sides_do_not_make_equations_equal(answer: str, gold: str) -> None:
    assert True not in both_ways(answer, gold)
    assert not compare_thoroughly(Question(answer, (gold,))).correct


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("x - y = 5", "-y+x=5"),
        ("an-a", "a(n-1)"),
        (r"\text{number of cats} = 5", r"\text{the number of cats} = \frac{10}{2}"),
        (r"5 = \text{cats}", r"\text{cats} = 5"),
        (r"y=\frac{1}{2x}", "2xy=1"),
        ("f(2)=5", r"f(2)=\frac{10}{2}"),
        ("f(x+1)", "f(1+x)"),
        (r"\frac{dy}{dx} = 2x", r"\frac{dy}{dx} = x \cdot 2"),
        ("2^3^2", "512"),
        ("12:30 am", "0:30"),
        ("2, 3, 2", "3, 2, 2"),
        (r"\{2, 2, 3\}", r"\{2, 3, 3\}"),
        (r"2, \pm 3", "-3, 2, 3"),
        ("5–6", "5-6"),
        ("5'6''", "66 inches"),
    ],
)
def test_equal_answers_stay_equal(answer: str, gold: str) -> None:
    assert False not in both_ways(answer, gold)
    if (answer, gold) != (r"y=\frac{1}{2x}", "2xy=1"):  # math-verify's to decide
        assert both_ways(answer, gold) == {True}


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("2,2,3", "2,3,3"),
        ("1,1,2", "1,2"),
        ("f(g(x))", "g(f(x))"),
        ("2xy", "2"),
        ("f(x+y)", "f(x)+f(y)"),
        ("f(2)+f(3)", "f(5)"),
        (r"\frac{dy}{dx}", r"\frac{y}{x}"),
        ("dy/dx", "xy"),
        ("2^3^2", "64"),
        ("e^x^2", "e^{2x}"),
        (r"\sqrt3:1", r"\sqrt3"),
        (r"\text{I and II}", r"\text{I or II}"),
        (r"\text{A and B}", r"\text{A or B}"),
        ("12:30", "0:30"),
        ("f(2)=5", "f(3)=5"),
        ("5'6''", "56"),
    ],
)
def test_our_own_reading_tells_apart(answer: str, gold: str) -> None:
    assert both_ways(answer, gold) == {False}


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("P(X=2)=0.5", "P(X=3)=0.5"),
        ("f'(x)", "f(x)"),
        ("f''(x)=2x", "f'(x)=2x"),
        (r"y^{\prime}", "y"),
        ("y\u2032", "y"),
        ("A'", "A"),
        ("5''", "5'"),
        (r"3^\circ", "3'"),
        (r"\{1,2,\ldots,10\}", r"\{1,2,10\}"),
        ("1:30", "1/30"),
        (r"a\pm b", r"a\mp b"),
        (r"x\equiv 3", "x=3"),
        (r"x\approx 3", "x=3"),
        ("5–6", "-1"),
        (r"3\text{-}4", "-1"),
        ("2020-01-02", "2017"),
        ("555-1234", "-679"),
    ],
)
def test_math_verify_is_not_asked_where_marks_differ(answer: str, gold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thorough, "math_verify", lambda: pytest.fail)
    assert differ_in_marks(answer, gold)
    assert differ_in_marks(gold, answer)
    assert compare_thoroughly(Question(answer, (gold,))) == Verdict(False, fast=False)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("f'(x)=2x", "2x"),
        ("P(X=2)=0.5", r"\frac{1}{2}"),
        (r"\{\pm 1\}", r"\{-1, 1\}"),
        (r"42 \ldots", "42"),
        (r"x \approx 3.14", "3.14"),
        (r"y^{\prime} + 1", "1 + y'"),
        ("Bob's", r"\text{Bobs}"),
        (r"\{x : x = 1\}", r"\{1\}"),
    ],
)
def test_marks_do_not_differ_by_a_label_or_a_spelling(answer: str, gold: str) -> None:
    assert not differ_in_marks(answer, gold)
    assert not differ_in_marks(gold, answer)


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^9}", "9^9^9", "2**3**4", "x^{9^{9}}", "9^{(9^9)}", "9^{{9^9}}", r"9^{\left(9^9\right)}", "9^{-9^9}",
        "e^{e^{e^{x}}}", "((9^{999})^{999})^{999}", "9^{99999999}", "99999!", "((9!)!)!", "9!!", "(10^9)!",
        r"\binom{99999}{5}", r"\prod_{k=1}^{100000} k", r"\sum_{k=1}^{10^{9}} k", r"\int_0^1 e^{x^{x}} dx",
    ],
)  # fmt: skip
def test_runaways_are_refused_before_math_verify(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thorough, "math_verify", lambda: pytest.fail)
    assert is_runaway(text)
    assert compare_thoroughly(Question(text, (r"\gamma",))) == Verdict(False, fast=False)
    assert Verdict(False).status == "ok"


@pytest.mark.parametrize(
    "text",
    [
        "2^{2007}", "e^{x^2}", "x^2+3^2", "10!", r"\sum_{k=1}^{10000} k", r"45^{\circ}", r"\binom{10}{5}", "(x^2+1)^3",
        "(10-3)!", r"n! \cdot (n+1)", r"\frac{3^{2}}{2^{3}}", "2^{x}3^{y}", r"6.02 \times 10^{23}", "[x^2]^3",
        "12345^2",         r"\sum_{n=1}^{\infty} \frac{1}{n^2}", r"\int_0^1 x^2 dx",
    ],
)  # fmt: skip
def test_ordinary_powers_sums_and_factorials_are_no_runaways(text: str) -> None:
    assert not is_runaway(text)
