"""Units of measurement behind a number: what they measure, and how much of it.

A unit is a product of powers of base words, times an exact factor: `km/h` is metre^1 second^-1 times 1000/3600. A
word that is no known unit (`apples`) stands for itself.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from alignment_core.numeric import Unreadable


class Unit(NamedTuple):
    """`powers` of base words, sorted, times `factor`."""

    powers: tuple[tuple[str, int], ...]
    factor: Fraction


_INCH = Fraction(254, 10_000)
_POUND = Fraction(45_359_237, 100_000_000)
_GALLON, _FOOT = 231 * _INCH**3, 12 * _INCH
_GROUPS: Mapping[tuple[str, int], Mapping[str, Fraction | int]] = {
    ("metre", 1): {
        "m meter metre": 1, "cm centimeter centimetre": Fraction(1, 100), "mm millimeter millimetre": Fraction(1, 1000),
        "dm decimeter": Fraction(1, 10), "km kilometer kilometre": 1000, "in inch": _INCH, "ft foot feet": _FOOT,
        "yd yard": 3 * _FOOT, "mi mile": 5280 * _FOOT,
    },
    ("metre", 2): {"acre": 43_560 * _FOOT**2, "hectare ha": 10_000},
    ("metre", 3): {
        "l liter litre": Fraction(1, 1000), "ml milliliter millilitre cc": Fraction(1, 10**6), "gal gallon": _GALLON,
        "quart qt": _GALLON / 4, "pint pt": _GALLON / 8, "cup": _GALLON / 16,
    },
    ("kilogram", 1): {
        "g gram gm": Fraction(1, 1000), "kg kilogram": 1, "mg milligram": Fraction(1, 10**6), "lb pound": _POUND,
        "oz ounce": _POUND / 16, "tonne": 1000,
    },
    ("second", 1): {"s sec second": 1, "min minute": 60, "h hr hour": 3600, "day d": 86_400, "week wk": 604_800},
    ("month", 1): {"month": 1, "year yr": 12, "decade": 120, "century": 1200},
    ("dollar", 1): {
        "dollar \\$ buck": 1, "cent \u00a2": Fraction(1, 100), "dime": Fraction(1, 10), "penny": Fraction(1, 100),
    },
    ("euro", 1): {"euro \\euro": 1},
    ("pound sterling", 1): {"\\pounds": 1},
    ("rupee", 1): {"rupee rs": 1},
    ("degree", 1): {"degree deg \\circ": 1},
    ("radian", 1): {"radian rad": 1},
    ("percent", 1): {"percent percentage %": 1},
}  # fmt: skip
_TABLE: Mapping[str, tuple[str, int, Fraction]] = {
    name: (base, power, Fraction(factor))
    for (base, power), group in _GROUPS.items()
    for names, factor in group.items()
    for name in names.split(" ")
}
_SPEEDS = {"mph": "mile per hour", "kmph": "km per hour", "kph": "km per hour", "fps": "ft per second"}
_FILLERS = {"of", "in", "total", "each", "the", "long", "old", "tall", "away", "more", "less", "left", "more."}
_POWER_WORDS = {"square": 2, "sq": 2, "sq.": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_WORD = re.compile(r"(\\\$|\\[a-z]+|%|[A-Za-z\u00a2]+\.?)(?: ?\^ ?\{? ?(\d) ?\}?)?")
_POWER = re.compile(r" ?\^ ?")
_PER = re.compile(r" per |/| a (?=[a-z])")
_REFUSED = {
    "or",
    "and",
    "not",
    "no",
    "but",
    "than",
    "if",
    "is",
    "to",
    "k",
    "thousand",
    "hundred",
    "dozen",
    "twice",
    "times",
    "double",
}
"""Words that make an answer something else than a number and its unit."""


def read_unit(text: str) -> Unit:
    """The unit a text spells (`square inches`, `miles per hour`, `cm^2`, `red apples`); raises `Unreadable`.

    >>> read_unit("km/h") == read_unit("kmph"), read_unit("cm^2").factor
    (True, Fraction(1, 10000))
    """
    text = " ".join(_SPEEDS.get(word, word) for word in _POWER.sub("^", text.strip(" ().")).split())
    powers: dict[str, int] = {}
    factor = Fraction(1)
    for position, part in enumerate(_PER.split(text)):
        sign = 1 if position == 0 else -1
        for base, power, size in _factors(part):
            powers[base] = powers.get(base, 0) + sign * power
            factor *= size**sign
    return Unit(tuple(sorted((base, power) for base, power in powers.items() if power)), factor)


def _factors(text: str) -> list[tuple[str, int, Fraction]]:
    """The base words of a text without "per"; several unknown words make one."""
    words = text.split()
    if not words and not text:
        raise Unreadable("no unit")
    found: list[tuple[str, int, Fraction]] = []
    unknown: list[str] = []
    exponent = 1
    for word in words:
        match = _WORD.fullmatch(word)
        if match is None or match[1].casefold() in _REFUSED:
            raise Unreadable("not a unit")
        plain = match[1].rstrip(".")
        if plain.casefold() in _POWER_WORDS and not unknown:
            exponent = _POWER_WORDS[plain.casefold()]
            continue
        entry = _TABLE.get(plain) or _TABLE.get(_singular(plain.casefold()))
        power = exponent * int(match[2] or 1)
        exponent = 1
        if entry is not None and not unknown:
            found.append((entry[0], entry[1] * power, entry[2] ** power))
        elif plain.casefold() not in _FILLERS:
            unknown.append(_singular(plain.casefold()) + (f"^{power}" if power > 1 else ""))
    if exponent > 1:
        raise Unreadable("a power of no unit")
    return [*found, (" ".join(unknown), 1, Fraction(1))] if unknown else found


def _singular(word: str) -> str:
    for ending, replacement in (("ches", "ch"), ("xes", "x"), ("ses", "s"), ("ies", "y"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + replacement
    return word
