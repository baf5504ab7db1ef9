"""Recursive descent over the lexemes of an expression: what the readers of plain text and of LaTeX share.

sum = product (+|- product)*; signed = (-|+) signed | power; product and power are each reader's own.
"""

from abc import ABC, abstractmethod
from fractions import Fraction

from alignment_core.latex_plain import MAX_NESTING
from alignment_core.numeric import Node, Unreadable


class Descent(ABC):
    """`position` is the next lexeme to read; `depth` counts nested parentheses, signs and powers."""

    def __init__(self, lexemes: list[str]) -> None:
        self.lexemes = lexemes
        self.position = 0

    def whole(self) -> Node:
        """The tree of all lexemes; raises `Unreadable` if some are left."""
        tree = self.sum(0)
        if self.position < len(self.lexemes):
            raise Unreadable("not an expression to its end")
        return tree

    def peek(self) -> str:
        """The next lexeme, or the empty string at the end."""
        return self.lexemes[self.position] if self.position < len(self.lexemes) else ""

    def take(self) -> str:
        """Consume and return the next lexeme."""
        lexeme = self.peek()
        self.position += 1
        return lexeme

    def expect(self, lexeme: str) -> None:
        """Consume this very lexeme."""
        if self.take() != lexeme:
            raise Unreadable(f"a {lexeme!r} is missing")

    def sum(self, depth: int) -> Node:
        """Terms joined by + and -."""
        node = self.product(depth)
        while self.peek() in {"+", "-"}:
            node = (self.take(), node, self.product(depth))
        return node

    def signed(self, depth: int) -> Node:
        """A power with leading signs; every way down passes here, so here nesting is bounded."""
        if depth > MAX_NESTING:
            raise Unreadable("nested too deep")
        if self.peek() not in {"-", "+"}:
            return self.power(depth)
        sign, inner = self.take(), self.signed(depth + 1)
        return ("-", ("number", Fraction(0)), inner) if sign == "-" else inner

    @abstractmethod
    def product(self, depth: int) -> Node:
        """Factors joined by a sign or by nothing."""

    @abstractmethod
    def power(self, depth: int) -> Node:
        """A primary with what may follow it: factorial signs, exponents."""
