"""Attacks by size: values, nesting, texts, numbers, lists and golds too large for a grader that is not careful."""

import itertools
from collections.abc import Iterator
from typing import Any

from attack_kit import DEEP, MEGABYTE, ROOT, TAGGED, Attack, Text, each, spam


def power_towers() -> Iterator[Attack]:
    """9^9^9^9 in every notation, also as exponents, roots, denominators and differences."""
    for base, height in itertools.product(("9", "99", "x", "e", "0.5", "-9"), (3, 4, 12)):
        rows = [base] * height
        yield Attack(f"caret-{base}-{height}", "^".join(rows), ROOT)
        yield Attack(f"stars-{base}-{height}", "**".join(rows), ROOT)
        yield Attack(f"latex-{base}-{height}", "^{".join(rows) + "}" * (height - 1), ROOT)
        yield Attack(f"left-{base}-{height}", "(" * height + base + f")^{base}" * height, ROOT)
    tower = "9^{9^{9^{9}}}"
    frames = (
        r"\frac{1}{%s}",
        r"\sqrt{%s}",
        r"\sqrt[%s]{2}",
        "%s-%s",
        r"\log_{%s}{3}",
        r"\sin(%s)",
        "x^{%s}",
        "-%s",
        "2%s",
        "%s!",
    )
    yield from each([frame.replace("%s", tower) for frame in frames], gold=ROOT)


def explosions() -> Iterator[Attack]:
    """Small texts whose values, or whose simplification, are huge."""
    numbers = ("99999999!", "9!!!!!!!!!", "(10^9)!", "((9!)!)!", "200!", "170!/169.5!", "(-5)!", "3.5!", "5!!")
    operators = (
        r"\binom{10^9}{5 \cdot 10^8}", r"\sum_{i=1}^{10^{12}} i", r"\prod_{k=1}^{10^9} k", r"\int_0^{10^9} x^x dx",
        r"\lim_{x\to\infty} x^{x^x}", r"\frac{d^{99}}{dx^{99}} x^{x^x}", r"\int \frac{1}{x^{97}+x+1} dx",
        r"\gcd(10^{999},9^{999})", r"10^{10^{10}} \bmod 7", r"\sum_{n=1}^{\infty} \frac{1}{n^{3}}",
        r"\lfloor e^{999} \rfloor",
    )  # fmt: skip
    algebra = (
        "(x+y)^{999}", "(x+1)^(999)", "*".join(f"(x+{n})" for n in range(60)),
        "+".join(f"1/{n}" for n in range(2, 80)),
        "(x+y+z+w)^9-(x+y+z+w)^9", r"\sqrt{x+" * 30 + "1" + "}" * 30, r"\sqrt{2+" * 30 + "2" + "}" * 30,
        "1/(1+" * 35 + "x" + ")" * 35, r"\sin(" * 40 + "1" + ")" * 40, r"\ln(" * 20 + "9^9" + ")" * 20, "x" * 290,
        "x^9" * 90,
        "2.5^0.1" * 40, "(" + "+".join(f"\\sqrt{{{n}}}" for n in range(2, 60)) + ")^9", "-" * 299 + "1",
        "1" + "+1" * 149,
        "|" * 200, "x=" * 400 + "1", "1<" * 400 + "x", r"x^{100}-x+1=0", "1/3/" * 70 + "7", "0^0", "0/0", "1/0",
        "0^-1", "(0/0)^0",
    )  # fmt: skip
    yield from each(numbers + operators + algebra, gold=ROOT)


def nested() -> Iterator[Attack]:
    """Brackets and commands nested within the limits, at them, and 100,000 deep; unclosed, closed, only closed."""
    pairs = {
        "brace": ("{", "}"), "round": ("(", ")"), "square": ("[", "]"), "frac": (r"\frac{1}{", "}"),
        "over": (r"\frac{", "}{2}"),
        "sqrt": (r"\sqrt{", "}"), "root": (r"\sqrt[", "]{2}"), "left": (r"\left(", r"\right)"), "power": ("2^{", "}"),
        "index": ("x_{", "}"), "text": (r"\text{", "}"), "bar": ("|", "|"), "minus": ("-", ""), "set": (r"\{", r"\}"),
        "matrix": (r"\begin{pmatrix}", r"\end{pmatrix}"), "call": ("f(", ")"), "bang": ("", "!"),
        "bare": (r"\frac", ""),
    }  # fmt: skip
    for (name, (left, right)), depth in itertools.product(pairs.items(), (45, 310, DEEP)):
        yield Attack(f"{name}-open-{depth}", spam("", left, depth, "7"), ROOT)
        yield Attack(f"{name}-closed-{depth}", lambda left=left, right=right, n=depth: left * n + "7" + right * n, ROOT)
        yield Attack(f"{name}-shut-{depth}", spam("7", right or left, depth), ROOT)
    yield Attack("box-in-box", spam("", r"\boxed{", DEEP, "4" + "}" * DEEP), fast=1.0, thorough=1.0)
    yield Attack("braces-around-a-right-answer", "{" * 45 + "4" + "}" * 45, fast=1.0, thorough=1.0)


def megabytes() -> Iterator[Attack]:
    """Answers, and thoughts, of a million characters."""
    units = (
        "9", "1,", "1,000,", ",", ";", "\\", "\\\\", "\\frac", "\\frac12", "\\sqrt", "\\sqrt ", "{", "}", "{}", "[",
        "(", ")", "(1,", " or ",
        " and ", "or", "x", "x+", "x=", "=", "1/", "-", ". ", ".", "!", "%", "$", "^", "_", "&", "~", "1e9",
        "million", "m ", "apples ", "é",
        "\U0001f4a5", "\u0301", "\u200b", "\ud800", "\x00", "\\text{", "\\text{}", "\\left", "\\begin{pmatrix}",
        "\\%", "4 ", "4\n", "<", "</",
        "<answer>", "</think>", "</think> <answer>", "\\boxed{", "\\boxed", "\\boxed{5}x", "\\!", "^\\circ", "0",
        "{1}", '"', "\n\n.\n",
    )  # fmt: skip
    for index, unit in enumerate(units):
        name = f"{index:02}-{unit.strip()[:12].encode('ascii', 'backslashreplace').decode()}"
        yield Attack(name, spam("3 ", unit, MEGABYTE // len(unit), " 5"))
    another = TAGGED.replace("{}", "5")
    thoughts = (" ", "<answer>", "</think>", another, "\\boxed{", " or ", "\ud800", "<", "4 ", "{")
    for index, unit in enumerate(thoughts):
        before = spam("", unit, MEGABYTE // len(unit), TAGGED.replace("{}", "4"))
        yield Attack(f"thought-{index}", before, frame="{}", fast=1.0, thorough=1.0)
    yield Attack("blank", spam("", " ", MEGABYTE))
    yield Attack("padded", spam("4", "\n", MEGABYTE), fast=1.0, thorough=1.0)
    yield Attack("ends", spam("4", "</answer>", MEGABYTE // 9), fast=1.0, thorough=1.0)
    yield Attack("unformatted", spam("", "x", MEGABYTE), frame="{}", formatted=0.0)
    yield Attack("boxes", spam("", r"\boxed{5} ", MEGABYTE // 10), frame="{}", reward="question_only")
    yield Attack("open-boxes", spam("", r"\boxed{", MEGABYTE // 7), frame="{}", reward="question_only", formatted=0.0)
    yield from each([spam("", "1,000", MEGABYTE // 5), spam("", "1.", MEGABYTE // 2), spam("", "-", MEGABYTE, "5")],
                    frame="{}", reward="number")  # fmt: skip
    yield from each({"sum": spam("1", "+1", MEGABYTE // 2), "round": spam("", "(", MEGABYTE, "1")}, reward="countdown")


def numbers() -> Iterator[Attack]:
    """Numbers too large, too long or too precise to compute with, and plain ones in odd notation."""
    giants = (
        "1e999999", "-1e999999", "1e-999999", "1e99", "1e400", "9.9e307", "1E+0000000000400", "10^{400}",
        "10^{999999}", "1e9e9", "1.5e", "e9", "1e1e1e1",
        "0." + "9" * 900, "1." + "0" * 900 + "1", "9" * 400, "9" * 401, "9" * 999, "9" * 4300, "9" * 4301,
        "9" * 9999, "1/" + "9" * 900, "9" * 300 + "/" + "7" * 300,
        "1,000" * 200, "1," * 400, "1,0000", "0" * 900, ".", "..", "1..2", "1.2.3", "+-+4", "4e0.5",
        "4" * 200 + "%", "1 " * 400, "7 3/4 " * 100,
    )  # fmt: skip
    for gold, name in ((ROOT, "root"), ("4", "four")):
        yield from each({f"giant-{index:02}-{name}": text for index, text in enumerate(giants)}, gold=gold)
    long: dict[str, Text] = {
        "digits": spam("", "9", MEGABYTE), "decimals": spam("0.", "9", MEGABYTE), "zeros": spam("4.", "0", MEGABYTE),
        "leading": spam("", "0", MEGABYTE, "4"),
    }  # fmt: skip
    yield from each(long)
    clothes = (
        "4.0", "4.", "04", "0" * 300 + "4", "4." + "0" * 300, "+4", "4e0", "0.4e1", "40e-1", "$4", "4%", r"\text{4}",
        "{4}", "x = 4",
        "4 apples", "3.99999999", "4 m", r"\$4", r"4^\circ", "$4$",
    )  # fmt: skip
    yield from each({f"clothes-{index:02}": text for index, text in enumerate(clothes)}, fast=1.0, thorough=None)
    yield Attack("double-minus", "--4", thorough=None)
    for name in ("9" * 999, "1e400", "(1/2"):
        yield Attack(f"same-{name[:6]}", name, name, fast=1.0, thorough=1.0)


def lists() -> Iterator[Attack]:
    """Lists, sets, intervals and matrices: long, deep, ragged."""
    cells = " & ".join(["1"] * 100)
    texts: dict[str, Text] = {
        "matrix-100": lambda: r"\begin{pmatrix}" + r" \\ ".join([cells] * 100) + r"\end{pmatrix}",
        "matrix-1000": lambda: r"\begin{pmatrix}" + r" \\ ".join([cells * 10] * 1000) + r"\end{pmatrix}",
        "matrix-wide": r"\begin{pmatrix}" + "&" * 900 + r"\end{pmatrix}",
        "matrix-tall": r"\begin{pmatrix}" + r"\\" * 450 + r"\end{pmatrix}",
        "matrix-open": r"\begin{pmatrix} 1 & 2 \\ 3",
        "matrix-power": r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}^{999999}",
        "array-columns": r"\begin{array}{" + "c" * 800 + r"}1\end{array}", "array-alone": r"\begin{array}",
        "begin": r"\begin", "end": r"\end{pmatrix}",
        "tuple-long": "(" + ",".join(map(str, range(240))) + ")",
        "tuple-huge": lambda: "(" + ",".join(map(str, range(DEEP))) + ")",
        "tuple-deep": "(1," * 200 + "1" + ")" * 200, "tuple-deeper": lambda: "(1," * DEEP + "1" + ")" * DEEP,
        "tuple-roots": "(" + ",".join([r"\sqrt{2}"] * 90) + ")",
        "set-long": r"\{" + ",".join(map(str, range(240))) + r"\}",
        "set-huge": lambda: r"\{" + ",".join(map(str, range(DEEP))) + r"\}", "commas": "(" + "," * 900 + ")",
        "union": r"\cup".join(f"({n},{n + 1})" for n in range(0, 140, 2)),
        "union-roots": r"\cup".join([r"(\sqrt{2},\sqrt{3})"] * 40),
        "product": r"\times".join(["(0,1)"] * 100), "interval-mixed": "(1,2]" * 100,
        "range": r"\{1,2,\ldots,10^{9}\}", "solutions": ",".join(f"x={n}" for n in range(180)),
        "hard": "(" + ",".join(f"x^{n}+sqrt({n})" for n in range(2, 9)) + ")", "unbalanced": "(1,2",
        "crossed": "(1,[2,3)]", "empty": "()", "empties": "[[],[],[]]",
    }  # fmt: skip
    yield from each(texts, gold=r"(\sqrt{2},3)")


def golds() -> Iterator[Attack]:
    """Hostile or broken gold answers: a data set is not to be trusted either."""
    hostile: dict[str, Any] = {
        "tower": "9^9^9^9", "latex-tower": "9^{9^{9^{9}}}", "factorial": "99999999!",
        "digits": spam("", "9", MEGABYTE), "braces": spam("", "{", DEEP), "sum": r"\sum_{i=1}^{10^{12}} i",
        "commas": spam("", ",", MEGABYTE), "boxed": r"\boxed{", "boxed-deep": spam("", r"\boxed{", DEEP),
        "empty": "", "blank": " ", "nul": "\x00", "surrogate": "\ud800",
        "empties": lambda: ["", " ", r"\boxed{}"],
        "many": lambda: [str(n) for n in range(5_000)],
        "many-hard": lambda: [rf"\sqrt{{{n}}}" for n in range(5, 205)],
        "many-long": lambda: ["9" * 100_000 + str(n) for n in range(10)], "inf": float("inf"), "nan": float("nan"),
        "tiny": 5e-324, "large": 1.7e308, "negative-zero": -0.0,
        "googol": 10**100, "long-int": lambda: 10**5_000, "true": True, "tuple": ("1", "2"),
        "text": spam("", "word ", 200_000), "frac": spam("", "\\frac", 200_000),
    }  # fmt: skip
    for name, gold in hostile.items():
        yield Attack(name, r"\sqrt{3}", gold)
    for name, text in {"tower": "8^{8^{8^{8}}}", "factorial": "88888888!", "megabyte": spam("", "8", MEGABYTE)}.items():
        other = spam("9", "9", MEGABYTE) if name == "megabyte" else str(text).replace("8", "9")
        yield Attack(f"both-{name}", text, other)
    for name, text in {"tower": "9^{9^{9^{9}}}", "factorial": "99999999!", "code": "__import__('os')"}.items():
        yield Attack(f"same-{name}", text, text, fast=1.0, thorough=1.0)
