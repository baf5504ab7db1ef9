"""Answer extraction and the fast verdict: hand-worked pairs, agreement with real verdicts, hostile input.

Run: pytest tests/test_grading.py
"""

import json
import time
from pathlib import Path

import pytest

from alignment_core.grading import boxed_answer, compare, count_options, gold_answers, tagged_answer
from alignment_core.latex_normal import normal_string
from alignment_core.latex_plain import MAX_NESTING, integer_value, plain_text, render
from alignment_core.numeric import Unreadable
from alignment_core.symbolic import parse, same_value, symbolically_equal
from alignment_core.verdicts import Verdict


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{3}", "3"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} is it", r"\frac{1}{2}"),
        (r"\boxed{}", ""),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed 9", None),
        (r"\boxed{1} then \boxed{2", None),
        ("no box", None),
    ],
)
def test_last_box(text: str, answer: str | None) -> None:
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (" r </think> <answer> 8 </answer>", " 8 "),
        (" r </think> <answer> 8 </answer> <answer> 9 </answer>", " 9 "),
        (" r </think> <answer>a</answer>b</answer>", "ab"),
        (" r </think>\n<answer> 8 </answer>", None),
        (" r </think>  <answer> 8 </answer>", None),
        (" r </think><answer> 8 </answer>", None),
        (" r </think> <answer> 8", None),
        ("</answer> </think> <answer> 8", " 8"),
        ("8", None),
    ],
)
def test_strict_tag_format(response: str, answer: str | None) -> None:
    assert tagged_answer(response) == answer


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("8", "8"),
        (" 8 \n", "8"),
        ("1/2", r"\frac{1}{2}"),
        ("0.5", r"\frac12"),
        (".5", "0.5"),
        (r"\dfrac{3}{4}", r"\tfrac34"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        ("x = 3", "3"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\text{B}", "B"),
        (r"180\text{ miles}", "180"),
        ("13 units", "13"),
        ("55 miles per hour", "55"),
        ("5 m", "5"),
        (r"50^\circ", "50"),
        (r"\$5", "5"),
        (r"20\%", "20"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"x \leq 2", r"x\le 2"),
        (r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
)
def test_string_test_accepts(answer: str, gold: str) -> None:
    assert compare(answer, gold) == Verdict(True, "string")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("50,000", "50000"),
        ("$13$", "13"),
        (r"\(2401", "2401"),
        (r"9 \\", "9"),
        ("6.", "6"),
        ("2.0", "2"),
        ("50%", "50"),
        ("0.25", "1/4"),
        ("0.20", "0.2"),
        (r"2\frac{1}{4}", "9/4"),
        ("2 1/4", r"\frac{9}{4}"),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
        ("sqrt(8)", r"2\sqrt{2}"),
        ("(x+1)^2", "x^2+2x+1"),
        ("2(x-2)(x+2)", "2x^2-8"),
        (r"\frac{9\pi}{4}", r"\frac94\pi"),
        ("(1/2, 3)", r"\left(0.5,3\right)"),
        ("[1/2,1)", "[0.5,1)"),
        ("1 , 2", "1 or 2"),
        ("2.5 million", "2500000*1"),
        ("-11+5", "5-11"),
        ("ln(4)/2", r"\ln(2)"),
        ("3!/4", "1.5"),
        ("2**3/3", "8/3.0"),
        ("12,345.60", "12345.6"),
        ("2469/20000", r"\dfrac{2469}{20,\!000}"),
    ],
)
def test_symbolic_test_accepts(answer: str, gold: str) -> None:
    assert compare(answer, gold).correct


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"5\ 6", "56"), (r"1\ 000", "1000"), (r"p\land q", r"p\lor q"), (r"\neg p", "p"),
        (r"A\subset B", r"B\subset A"), (r"\forall x", r"\exists x"), (r"\parallel", r"\perp"),
        (r"\Rightarrow", r"\Leftarrow"), (r"\equiv", r"\cong"), (r"\sum x", "x"), (r"\int x", "x"), (r"\nabla f", "f"),
        (r"5\Gamma", "5"), (r"\sim 5", "5"), (r"\bar{x}", "x"), (r"\hat{x}", "x"), (r"\vec{v}", "v"),
        (r"\bar{x}", r"\hat{x}"), (r"\overline{AB}", "AB"), (r"0.\overline{3}", "0.3"), (r"5\choose 2", "52"),
        (r"\inf", r"\infty"),
    ],
)  # fmt: skip
def test_symbols_and_accents_are_read(answer: str, gold: str) -> None:
    assert not compare(answer, gold).correct
    assert not compare(gold, answer).correct
    assert compare(f"{{ {answer} }}", answer).correct


def test_spaces_symbols_and_accents_as_plain_text() -> None:
    assert render(r"5\ 6") == render(r"5\;6") == "5 6"
    assert plain_text(r"5\ 6") == "5+6"
    assert render(r"\overline{A B}\to\bar x") == "A\u0305 B\u0305\u2192x\u0304"
    assert render(r"\operatorname{rank} 2") == "rank 2"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("9", "8"),
        ("", "8"),
        ("  ", "8"),
        ("2/4", "1/2"),  # unreduced
        ("-5/3.", "-5/3"),
        ("AB = 3", "3"),  # three characters, the space being one
        ("6.4", "6"),
        (r"\frac{6}{3}", "2"),  # an integer on one side only
        ("(1,2]", "(1,2)"),
        ("(1,2,3)", "(1,2)"),
        ("(2,1)", "(1,2)"),
        ("2,1", "1,2"),
        ("$x=4$", "4"),
        ("xyz = 3", "3"),
        ("sqrt(x^2)", "x"),
        ("sqrt(x)*sqrt(y)", "sqrt(x*y)"),
        ("x+y+z", "z+y+x"),  # three unknown letters: only equal text counts
        ("x^12*x", "x^13"),  # two-digit exponents are not computed
        ("1.41421356237309504880168872", r"\sqrt{2}"),
        ("1242", "1242_6"),
        ("-6", "6"),
        (r"\sqrt[3]{2}", r"\sqrt{2}"),
        ("0/0", "0/0*1"),
        ("1/0", "2/0"),
        ("miles", "hours"),
        ("x!", "x*1.5"),
    ],
)
def test_wrong_answers(answer: str, gold: str) -> None:
    assert compare(answer, gold) == Verdict(False)


def test_gold_answers_are_unboxed_and_any_of_a_list_counts() -> None:
    assert gold_answers(r"Hence $x=\boxed{\frac{1}{2}}$.") == [r"\frac{1}{2}"]
    assert gold_answers(3) == ["3"]
    assert gold_answers(["", "a", r"\boxed{"]) == ["a"]
    assert compare("7", ["6", "7"]).correct
    assert compare("7.0", 7).correct
    assert compare("7", 7.0).correct
    assert not compare("7", ["6", "8"]).correct
    assert not compare("", "").correct


def test_normal_string_never_empties_a_unit() -> None:
    assert normal_string("m") == "m"
    assert normal_string("5 square feet") == "5"
    assert normal_string("12m") == "12m"


def test_rendering() -> None:
    assert plain_text(r"\displaystyle \frac{1}{2}\cdot\pi") == "1/2*pi"
    assert plain_text(r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}") == "[1&2;3&4]"
    assert plain_text(r"7\,\frac34") == "7+3/4"
    assert plain_text(r"(-\infty, 4) \cup [5, \infty)") == "(-inf,4)u[5,inf)"
    assert render(r"\unknown{a}b") == "ab"
    with pytest.raises(Unreadable, match="argument"):
        render(r"\frac{1}")
    with pytest.raises(Unreadable, match="deep"):
        render("{" * (MAX_NESTING + 2))


def test_integer_value() -> None:
    assert integer_value("1,000,000") == 1_000_000
    assert integer_value("2.00000001") == 2
    assert integer_value("1,00") is None
    assert integer_value("1_0") is None
    assert integer_value("2.5") is None


def test_grammar() -> None:
    assert same_value("1/2x", "x/2")
    assert same_value("2^3x", "8x")
    assert same_value("-x^2", "0-x*x")
    assert same_value("2^-1", "0.5")
    assert same_value("2^3^2", "512")
    assert same_value("3--2", "5")
    assert same_value("ab^2", "b*a*b")
    assert not same_value("ab^2", "a*b")
    for bad in ("", "(", "1+", ")(", "2**", "x=3", "1;2", "__import__", "²", "1" * 301, "(" * 60 + "1" + ")" * 60):
        with pytest.raises(Unreadable):
            parse(bad)


def test_options() -> None:
    assert [count_options(text) for text in ("3", "3 or 4", "(1, 2)", "1,000", "1, 2, 3", "[0,1) and 5")] == [
        1, 2, 1, 1, 3, 2,
    ]  # fmt: skip


HOSTILE = [
    "9**9**9**9", "9^9^9^9", "9^(9^(9^9))", "99999999!", "9!!!!!!!!", "200!!", "2^(2^(2^(2^2)))*1.5", "x**999**999",
    "(x+y)**99**9", "1e999*1e999", "1e999999999", "1.5**1e300", "0.5**-1e300", "sqrt(" * 100 + "2" + ")" * 100,
    "{" * 100_000, "{" * 100_000 + "1" + "}" * 100_000, "(" * 100_000, r"\frac" * 50_000, r"\sqrt" * 190,
    r"\frac{" * 160, r"\begin{a}" * 110, "-" * 290 + "1", "+".join("1" * 140), "!" * 300, "1" * 1_000_000,
    "x" * 999, "5" + " " * 1_000_000, " or ".join("12345"), "1,111" * 200_000, "\x00", "3\x00", "\ud800", "\udfff3",
    r"\boxed{" * 30_000, "__import__('os').system('true')", "().__class__.__bases__[0]", "lambda:0", "\u0131" * 50,
    "²³", "٣", "1_0_0", "\\" * 999, "\\text{" * 150, "$" * 999, "&" * 999, "0**0", "0**-1", "ln(0)", "ln(ln(1))",
    "sqrt(-1)", "(-1)**0.5", "i**i**i**i", "99**99**2.5", "((((9**9)**9)**9)**9)**9", "1.1**1.1**1.1**1.1**9999",
    "*".join(["sqrt(2)"] * 30), "pi**" * 60 + "pi", r"\frac2" + "\\\\", "(1e999,1e999)", "1e400/1e400*sqrt(2)",
]  # fmt: skip


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("gold", ["3", "1.5", "x+1"])
def test_hostile_answers_get_a_quick_verdict(answer: str, gold: str) -> None:
    started = time.process_time()
    verdict = compare(answer, gold)
    assert time.process_time() - started < 2
    assert verdict.status == "ok"
    assert not verdict.correct


def test_hostile_gold_gets_a_quick_verdict() -> None:
    started = time.process_time()
    for text in HOSTILE:
        compare("1.25", text)
        symbolically_equal("2.5", text)
    assert time.process_time() - started < 5


def test_agrees_with_the_published_grader_on_real_answers(shared_data: Path) -> None:
    rows = json.loads((shared_data / "sft" / "gptoss120b_math_4836.json").read_text(encoding="utf-8"))
    assert len(rows) == 4836
    right = sum(compare(row["extracted_answer"], row["expected_answer"]).correct for row in rows)
    assert right == 4542
