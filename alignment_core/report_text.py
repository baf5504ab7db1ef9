"""How numbers, names and hostile texts are written on a page."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "\u2013"
"""A dash, where there is no value to show."""
LONGEST_TEXT = 4_000
"""Characters of one prompt or response that a page shows."""
_SHORT_TEXT = 60
"""Longer values, and those with line breaks, get a block of their own."""
# Controls, direction overrides, zero-width characters and lone surrogates: nothing a reader could see.
_INVISIBLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u061c\\u115f\\u1160\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f"
    "\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff9-\\ufffb\\ud800-\\udfff\\U000e0000-\\U000e0fff]"
)
_SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


TESTS = {"mcnemar": "exact McNemar", "sign_flip": "sign flip", "seeds_and_problems": "over seeds and problems"}
"""What a page calls a test."""


def percent(share: float | None) -> str:
    """A share as per cent with one decimal; a dash for None."""
    return NOTHING if share is None else f"{100 * share:.1f}"


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, signed; a dash for None."""
    return NOTHING if difference is None else f"{100 * difference:+.1f}".replace("-", "\u2212")


def p_value(p: float) -> str:
    """A p-value to two significant digits, small ones with their power of ten; a dash for what is none."""
    if not math.isfinite(p):
        return NOTHING
    if p >= 1e-3:
        return "1" if p >= 0.995 else f"{p:#.2g}"
    if p < 1e-99:
        return f"< 10{'-99'.translate(_SUPERSCRIPTS)}"
    mantissa, _, exponent = f"{p:.1e}".partition("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def test_name(test: str | None) -> str:
    """A test of `comparisons.Test` in words; a dash for None."""
    return NOTHING if test is None else TESTS.get(test, words(test))


def number(value: float | None, digits: int = 0) -> str:
    """A number with thousands separators; a dash for None."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def quantity(value: float | None) -> str:
    """A count to three digits: 950, 12.3 k, 4.56 M; a dash for None."""
    if value is None:
        return NOTHING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= max(size, 10_000):
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as 12 s, 3 min 20 s or 2 h 5 min; a dash for None."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def visible(text: object) -> str:
    """Text as a page may show it: cut to a length, invisible characters as codes such as ⟨U+202E⟩."""
    full = str(text)
    shown = _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", full[:LONGEST_TEXT].replace("\r\n", "\n"))
    left_out = len(full) - LONGEST_TEXT
    return f"{shown}\n… {left_out:,} more characters" if left_out > 0 else shown


def words(name: object) -> str:
    """A field name as words: `n_test` -> `n test`."""
    return str(name).replace("_", " ")


def setting_name(dotted: str) -> str:
    """The last part of a dotted name, as words: `grpo.optimizer.learning_rate` -> `learning rate`."""
    return words(dotted.rpartition(".")[2])


def setting_value(value: object) -> str:
    """A setting as people write it: 2e-5, yes, `a, b`; a dash for None."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting_value, value)) or "none"
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", lambda match: f"e{match[1].replace('+', '')}", f"{value:g}")
    return fact(value)


def setting_told(text: str) -> str:
    """A setting that was written down as text, written as `setting_value` writes the value: `True` -> `yes`."""
    known = {"True": "yes", "False": "no", "None": NOTHING}
    if text in known or re.fullmatch(r"-?\d+", text):
        return known.get(text, text)
    try:
        return setting_value(float(text))
    except ValueError:
        return text


def listed(values: Sequence[str]) -> str:
    """Values with commas between them."""
    return ", ".join(values) or "none"


def facts(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain data as (name, text) lines, whatever its shape."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        label = f"{prefix}{words(name)}"
        if isinstance(value, Mapping):
            lines += facts(value, f"{label}: ")
        elif isinstance(value, (list, tuple)):
            shown = [
                ", ".join(f"{k} {v}" for k, v in item.items()) if isinstance(item, Mapping) else item for item in value
            ]
            lines.append((label, "; ".join(str(item) for item in shown) or "none"))
        else:
            lines.append((label, fact(value)))
    return lines


def fact(value: object) -> str:
    """One plain value as text."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def split_row(row: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """A sample row as `short` facts for its head line and `long` texts for blocks."""
    parts: dict[str, list[tuple[str, str]]] = {"short": [], "long": []}
    for name, text in facts(row):
        block = name in {"prompt", "response", "question"} or len(text) > _SHORT_TEXT or "\n" in text
        parts["long" if block else "short"].append((name, text))
    return parts
