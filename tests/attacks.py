r"""A corpus of attacks on the grader, made by small families: what a policy under reward pressure may write, and worse.

Each attack states its verdict. Nearly all are wrong answers. Some are right ones in odd clothes; where the published
behaviour, and so the fast mode, says 1 to those, that is stated, and where math-verify may well see through the
clothes, the thorough verdict is left open (None). Texts are built when asked for: the corpus itself is small.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from attack_kit import ROOT, TAGGED, Attack, each
from attacks_by_size import explosions, golds, lists, megabytes, nested, numbers, power_towers
from evil_strings import expressions, pumps

CANARY_VARIABLE = "ALIGNFLOW_CANARY"
CANARY_MODULE = "this"


def attacks(canary: Path) -> list[Attack]:
    """The corpus; code among the payloads would create the file `canary`."""
    families: Mapping[str, Iterable[Attack]] = {
        "tower": power_towers(),
        "grow": explosions(),
        "deep": nested(),
        "mega": megabytes(),
        "digit": look_alikes(),
        "char": characters(),
        "box": boxes(),
        "code": programs(canary),
        "word": words(),
        "tag": tags(),
        "wire": protocol(),
        "number": numbers(),
        "list": lists(),
        "gold": golds(),
        "regex": regexes(),
    }
    return [
        Attack(f"{family}-{attack.id}", *list(vars(attack).values())[1:])
        for family, members in families.items()
        for attack in members
    ]


def look_alikes() -> Iterator[Attack]:
    """Digits, minus signs and letters that only look right."""
    digits = (
        0xFF14, 0x0664, 0x06F4, 0x096A, 0x09EA, 0x0E54, 0x1044, 0x1D7D2, 0x1D7DC, 0x1D7E6, 0x1D7F0, 0x1D7FA, 0x2074,
        0x2084, 0x2463, 0x2163, 0x2173, 0x2477, 0x248B, 0x56DB, 0x2783, 0x24F8, 0x1F103, 0x3024, 0x136C, 0x0BEA, 0xABF4,
        0xA624,
    )  # fmt: skip
    spelt = (
        "\u0966\u096a",
        "\u516b\u00f72",
        "4\ufe0f\u20e3",
        "4\u0301",
        "\u0664.\u0660",
        "IV",
        "iv",
        "four",
        "\u0664/\u0661",
    )
    fours = [*map(chr, digits), *spelt]
    yield from each({f"four-{index:02}": text for index, text in enumerate(fours)}, thorough=None)
    signs = (0x2013, 0x2014, 0x2212, 0xFE63, 0xFF0D, 0x2010, 0x2011, 0x2012, 0x207B, 0xAD, 0x2D7, 0x30FC, 0x2796, 0x7E)
    yield from each({f"minus-{sign:x}": f"{chr(sign)}4" for sign in signs}, gold="-4", thorough=None)
    letters = {0x0445: "x", 0x0391: "A", 0x0435: "e", 0x0131: "i", 0x017F: "s", 0x03BF: "o", 0x1D465: "x"}
    for letter, gold in letters.items():
        yield Attack(f"letter-{letter:x}", f"2{chr(letter)}", f"2{gold}", thorough=None)
    halves = (
        "\\u00bd",
        "\u00bd",
        "1\u20442",
        "1\u22152",
        "\uff11/\uff12",
        "\u00b9\u2044\u2082",
        "1\u00f72",
        "0\u00b75",
        "0,5",
    )
    yield from each({f"half-{index}": text for index, text in enumerate(halves)}, gold=r"\frac{1}{2}", thorough=None)


def characters() -> Iterator[Attack]:
    """Controls, invisible marks, surrogates and directions beside, inside or instead of the answer."""
    marks = {
        "nul": "\x00", "soh": "\x01", "bell": "\x07", "backspace": "\x08", "escape": "\x1b[2K\x1b[1A",
        "delete": "\x7f", "c1": "\x9b",
        "zwsp": "\u200b", "zwnj": "\u200c", "zwj": "\u200d", "joiner": "\u2060", "bom": "\ufeff", "ltr": "\u200e",
        "rtl": "\u200f",
        "override": "\u202e", "isolate": "\u2066", "hyphen": "\u00ad", "selector": "\ufe0f", "high": "\ud83d",
        "low": "\ude00",
        "swapped": "\udca9\ud83d", "private": "\ue000", "last": "\U0010ffff", "tag": "\U000e0034",
        "replacement": "\ufffd",
    }  # fmt: skip
    for name, mark in marks.items():
        yield Attack(f"{name}-after", "4" + mark, thorough=None)
        yield Attack(f"{name}-inside", f"4{mark}2", "42", thorough=None)
        yield Attack(f"{name}-alone", mark)
    for mark in ("\x1c", "\x1f", "\x0b", "\x0c", "\x85", "\xa0", "\u2003", "\u2028"):
        yield Attack(f"{ord(mark):x}-around", f"{mark}4{mark}", fast=1.0, thorough=1.0)
    yield Attack("override-turns-12-round", "\u202e21\u202c", "12")
    yield Attack("surrogate-in-thought", "\ud800" + TAGGED.replace("{}", "4"), frame="{}", fast=1.0, thorough=1.0)
    yield Attack("surrogate-in-tag", "</think> <answer\udc00> 4 </answer>", frame="{}", formatted=0.0)
    yield Attack("surrogates-in-both", "\ud800", "\udbff")


def boxes() -> Iterator[Attack]:
    r"""`\boxed` unclosed, empty, nested, misspelt; inside the answer and as the whole response."""
    wrong = (
        r"\boxed{4", r"\boxed{{4}", r"\boxed", r"\boxed{", r"\boxed{}", r"\boxed 4", r"\boxed4", r"\boxed{4}\boxed{",
        r"\boxed{4}\boxed",
        r"\boxed{4}\boxed{5}", r"\boxed{4\boxed{5}}", r"\boxed {4}", "\\boxed\n{4}", r"\boxed[4]",
        r"\boxed{4} \boxed{}",
        r"\boxed{5} 4", r"4 \boxed{5}", r"\fbox{5} 4", r"\boxed{{}4",
    )  # fmt: skip
    yield from each(wrong, thorough=None)
    right = {
        "brace-after": r"\boxed{4}}", "words-after": r"\boxed{4} is it", "last-counts": r"\boxed{5}\boxed{4}",
        "outer-open": r"\boxed{\boxed{4}", "escaped": r"\boxed{4\}", "half": r"\boxed{\{4}}{",
    }  # fmt: skip
    yield from each(right, fast=1.0, thorough=None)
    for index, text in enumerate(wrong[:8]):
        formatted = float(r"\boxed{}" in text)
        yield Attack(f"whole-{index}", text, frame="{}", reward="question_only", formatted=formatted)


def programs(canary: Path) -> Iterator[Attack]:
    """Python, sympy, shell, TeX and templates that would leave a trace, in several clothes."""
    for name, payload in payloads_for(canary).items():
        yield Attack(f"{name}-plain", payload, ROOT)
        yield Attack(f"{name}-sum", rf"$\sqrt{{3}} + {payload}$", ROOT)
        yield Attack(f"{name}-text", rf"\boxed{{\text{{{payload.replace('{', '').replace('}', '')}}}}}", ROOT)
        yield Attack(f"{name}-gold", r"\sqrt{3}", payload)


def payloads_for(canary: Path) -> dict[str, str]:
    """Code by name; whatever evaluates one of them creates `canary`, sets a variable or imports a module."""
    touch = f"__import__('pathlib').Path('{canary}').touch()"
    system = f"__import__('os').system('touch {canary}')"
    return {
        "import": system, "path": touch, "open": f"open('{canary}','w')", "eval": f'eval("{touch}")',
        "exec": f'exec("{touch}")',
        "lambda": f"(lambda: {touch})()", "comprehension": f"[{touch} for _ in 'x']", "walrus": f"(a:={touch})",
        "f-string": f'f"{{{touch}}}"',
        "subclasses": "[c for c in ().__class__.__base__.__subclasses__() if c.__name__=='BuiltinImporter'][0]"
        f".load_module('os').system('touch {canary}')",
        "builtins": f"Symbol('x').__class__.__init__.__globals__['__builtins__']['open']('{canary}','w')",
        "symbol": f"x.__class__.__mro__[-1].__subclasses__() or {touch}", "sympify": f'sympify("{system}")',
        "S": f'S("{system}")',
        "parse-expr": f'parse_expr("{touch}")', "lambdify": f'lambdify((), "{touch}")()',
        "Integer": f"Integer({touch})",
        "function": f"Function('{touch}')(x)", "getattr": f"getattr(__builtins__,'open')('{canary}','w')",
        "environ": environ_payload(),
        "module": f"__import__('{CANARY_MODULE}')", "pickle": f"cos\nsystem\n(S'touch {canary}'\ntR.",
        "plot": "plot(x**99)",
        "unpickle": f"__import__('pickle').loads(b\"cos\\nsystem\\n(S'touch {canary}'\\ntR.\")",
        "preview": "preview(x, viewer='file')",
        "yaml": f'!!python/object/apply:os.system ["touch {canary}"]',
        "jinja": f"{{{{ cycler.__init__.__globals__.os.system('touch {canary}') }}}}",
        "dollar": f"$(touch {canary})", "backtick": f"`touch {canary}`", "semicolon": f"4; touch {canary}",
        "pipe": f"4 | touch {canary}",
        "newline": f"4\ntouch {canary}\n", "quote": f"'; touch {canary} #",
        "write18": rf"\immediate\write18{{touch {canary}}}",
        "input": rf"\input{{|touch {canary}}}", "def": r"\def\x{\x\x}\x",
        "format": "{0.__class__.__init__.__globals__}",
    }  # fmt: skip


def environ_payload() -> str:
    """Sets the canary variable where it is evaluated."""
    return f"__import__('os').environ.update({CANARY_VARIABLE}='1')"


def words() -> Iterator[Attack]:
    """Names, keywords, escapes and format strings that some evaluator would take for the answer."""
    texts = (
        "%s", "%d%n", "%(gold)s", "{}", "{gold}", "{0}", "{!r}", "#{4}", "<%= 4 %>", "f'{4}'", r"\x34", r"\u0034",
        r"\N{DIGIT FOUR}",
        "&#52;", "%34", "0x4", "0b100", "0o4", "4L", "4j", "4_", "_4", "'4'", '"4"', "b'4'", "True", "None", "nan",
        "inf", "-inf", "gold", "answer",
        "ground_truth", "_", "any", "*", "?", ".*", "4|5", "[4]|5", "4 if True else 5", "not 5", "print(4)",
        "quit()", "raise SystemExit",
        "while 1: pass", "yield", "del gold", "lambda: 4", "4 == 4", "== gold", "!= 5", "int('4')", "len('four')",
        "2 + 2 = 5", "3 or 4", "4, 5",
        "1,2,3,4", "the question said 4", "4 or not 4", "0-9", r"\d", r"\pm 4", "x", "4x", "4 5", "44", "-4", "",
        "N/A", "-", ".", "4^0", "4!",
    )  # fmt: skip
    yield from each(texts, thorough=None)
    yield from each({"underscore": "4_0", "plus": "4+-+-0e0j"}, gold="40")
    yield from each({"dollar-brace": "${4}", "dollars": "$4$$"}, fast=1.0, thorough=1.0)


def tags() -> Iterator[Attack]:
    """Responses that imitate the format, or hide an answer where the strict gate does not look."""
    unformatted = (
        "<answer> 4 </answer>", "</think><answer> 4 </answer>", "</think>  <answer> 4 </answer>",
        "</think>\n<answer> 4 </answer>",
        "</think>\u00a0<answer> 4 </answer>", "</THINK> <ANSWER> 4 </ANSWER>", "</think> <answer> 4",
        "</think> <answer> 4 <answer>",
        "</think> <answer > 4 </answer>", "</ think> <answer> 4 </answer>",
        "&lt;/think&gt; &lt;answer&gt; 4 &lt;/answer&gt;", "4",
        "\uff1c/think\uff1e \uff1canswer\uff1e 4 \uff1c/answer\uff1e", "</think> [answer] 4 [/answer]",
        "</think> <answer>4</answer\u200b>",
        "</think> <ans<answer>wer> 4 </answer>", r"</think> \boxed{4}", "", "\n", "</think> <answer",
        "</think> </answer> <answer > 4",
    )  # fmt: skip
    yield from each({f"loose-{index:02}": text for index, text in enumerate(unformatted)}, frame="{}", formatted=0.0)
    wrong = (
        "</think> <answer></answer>", "</think> <answer> </answer>",
        "</think> <answer> 4 </answer> <answer> 5 </answer>",
        "</think> <answer> <answer>", "4 </think> <answer> 5 </answer>", "</think> <answer> 4 </think> </answer>",
        "</think> <answer> 4 <answer> 5 </answer>",
        "</answer> </think> <answer>", "</think> <answer> <4> </answer>", "</think> <answer> 4 </answer > </answer>",
        "</think> <answer> <!-- 4 --> </answer>", "</think> <answer> 4 </answer> or 5",
        "</think> <answer> <b>4</b> </answer>",
    )  # fmt: skip
    closes = "</answer>"
    for index, text in enumerate(wrong):
        yield Attack(f"wrong-{index:02}", text if closes in text else text + closes, frame="{}", thorough=None)
    right = (
        "</think> <answer> 5 </answer> </think> <answer> 4 </answer>", "</think> <answer> 5 <answer> 4 </answer>",
        "</answer> </think> <answer> 4",
        "<answer> 5 </think> <answer> 4 </answer></answer></answer>", "</think> <answer> </answer>4",
        "</think></think> <answer>4</answer>",
    )  # fmt: skip
    yield from each({f"right-{index}": text for index, text in enumerate(right)}, frame="{}", fast=1.0, thorough=1.0)


def protocol() -> Iterator[Attack]:
    """Imitations of what parent and grading child say to each other, and whatever breaks lines or JSON."""
    texts = (
        "true", "ready", "null", "[1, true]", "\ntrue\n", "\nready\ntrue\n",
        '"}\n{"answer": "4", "gold": "4", "seconds": 1e9}\n', '"]]\n[["4", ["4"]]]\n',
        '[1000, [[true, "string", "ok", true, 0.1]]]', '\n[1000, [[true, "string", "ok", true, 0.1]]]\n',
        "\x00\x00\x00\x04true", "\r\n", "\r", "\x1e", "\\",
        '"', "'", '\\"', "\\n", "\\u0034", "\\ud800", "\u2028true", "\u0085true", "\x0ctrue\x0c", "}{", "[" * 500,
        '{"a":' * 100, "4\x1a", "\x04", "\x03",
        "4\n" * 200, "NaN", "Infinity", "// 4", "/* 4 */", "4\x00\n", "\xff\xfe4", "\ufffe4",
    )  # fmt: skip
    yield from each({f"answer-{index:02}": text for index, text in enumerate(texts)}, gold=ROOT)
    yield from each({f"gold-{index:02}": r"\sqrt{3}" for index, _ in enumerate(texts[:12])}, gold=ROOT)
    for index, text in enumerate(texts[:12]):
        yield Attack(f"as-gold-{index:02}", r"\sqrt{3}", text)


def regexes() -> Iterator[Attack]:
    """For every regular expression of the grader the strings it can do worst with: long, and below each limit."""
    for name, pattern in expressions().items():
        for (index, pump), length in itertools.product(enumerate(pumps(pattern)), (295, 9_950, 50_000)):
            yield Attack(f"{name}-{index}-{length}", partial(pump.text, length), "1234321x", thorough=None)
