"""What an attack on the grader is, and how a family of them is written down."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

TAGGED = " thinking hard </think> <answer> {} </answer>"
ROOT = r"\sqrt{2}"
"""A gold that is no integer, so that the answer's value is asked for."""
DEEP = 100_000
MEGABYTE = 1_000_000

Text = str | Callable[[], str]


@dataclass(frozen=True)
class Attack:
    """One hostile response, its gold answer and the verdict it must get."""

    id: str
    answer: Text
    gold: Any = "4"
    fast: float | None = 0.0
    thorough: float | None = 0.0
    formatted: float = 1.0
    frame: str = TAGGED
    reward: str = "r1_zero"

    @property
    def response(self) -> str:
        """What the model is supposed to have written."""
        answer = self.answer if isinstance(self.answer, str) else self.answer()
        return self.frame.replace("{}", answer)

    @property
    def truth(self) -> Any:
        """The gold answer."""
        return self.gold() if callable(self.gold) else self.gold


def each(texts: Iterable[Text] | Mapping[str, Text], **facts: Any) -> Iterator[Attack]:
    """One attack per text, numbered unless named."""
    named = texts.items() if isinstance(texts, Mapping) else ((f"{index:03}", text) for index, text in enumerate(texts))
    for name, text in named:
        yield Attack(name, text, **facts)


def spam(before: str, unit: str, times: int, after: str = "") -> Callable[[], str]:
    """`before`, then `unit` many times, then `after`; built when called."""
    return lambda: before + unit * times + after
