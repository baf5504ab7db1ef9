r"""Tidy LaTeX (or plain) mathematics as an expression tree, for the thorough verdict.

Unlike the fast verdict's text rendering it keeps the structure of the LaTeX: `\frac{1+x}{2}` is (1+x)/2. Recursive
descent with bounded nesting; whatever is not surely understood raises `Unreadable`.

    sum = product (+|- product)*      product = signed ((*|/|\cdot|...|nothing) signed)*      signed = -signed | power
    power = primary (! | ^argument | degree)*      primary = number | name | (sum) | {sum} | |sum| | function argument
"""

import re
from fractions import Fraction

from alignment_core.descent import Descent
from alignment_core.latex_plain import MAX_NESTING
from alignment_core.numeric import Node, Unreadable, evaluate, unknowns
from alignment_core.seeding import derive_seed

MAX_LEXEMES = 400

_LEXEME = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d])|\d+\.?\d*(?:[eE][+-]?\d{1,3}(?![\d.]))?|\.\d+)"
    r"|(?P<command>\\[A-Za-z]+|\\[|%])|(?P<word>[A-Za-z]+)|(?P<sign>[-+*/^!()\[\]{}|_=])|(?P<space> +)|(?P<other>.)",
    re.DOTALL,
)
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "exp", "ln", "log",
}  # fmt: skip
_OPERATORS = {"*": "*", "/": "/", "\\cdot": "*", "\\times": "*", "\\div": "/", "\\ast": "*"}
_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega", "Delta", "Gamma", "Omega", "ell",
}  # fmt: skip
_CONSTANTS = {"e": ("e",), "i": ("i",), "pi": ("pi",)}
_MIXED = re.compile(r"(?<![\w.}^)])(\d+) *\\frac *(?:\{(\d+)\} *\{(\d+)\}|(\d)(\d))(?!\w)")
_MIXED_SLASH = re.compile(r"(?<![\w.}^)/])(\d+) +(\d+) */ *(\d+)(?![\w.])")
_DERIVATIVE = re.compile(
    r"\\frac *\{ *d *([A-Za-z]?) *\} *\{ *d *([A-Za-z]) *\}|(?<![A-Za-z\\])d([A-Za-z]?) ?/ ?d([A-Za-z])(?![A-Za-z])"
)
_APPLIED = {"f", "g"}
"""Letters before a parenthesis that are functions, and not factors."""
_LARGEST_ARGUMENT = 10**200
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline *\{(\d+)\}")
DEGREE: Node = ("/", ("pi",), ("number", Fraction(180)))


def read_expression(text: str) -> Node:
    """The tree of a tidy text; raises `Unreadable`."""
    text = _MIXED.sub(_mixed, text)
    text = _MIXED_SLASH.sub(r"(\1+\2/\3)", text)
    text = _REPEATING.sub(_repeating, text)
    text = _DERIVATIVE.sub(lambda match: f"d_{{{match[1] or match[3]}/{match[2] or match[4]}}}", text)
    lexemes = _lexemes(text)
    if len(lexemes) > MAX_LEXEMES:
        raise Unreadable("expression too long")
    return _Reader(lexemes).whole()


def _mixed(match: re.Match[str]) -> str:
    return f"({match[1]}+({match[2] or match[4]})/({match[3] or match[5]}))"


def _repeating(match: re.Match[str]) -> str:
    """`0.1\\overline{6}` as a fraction."""
    scale, nines = 10 ** len(match[2]), 10 ** len(match[3]) - 1
    value = Fraction(int((match[1] or "0") + match[2]), scale) + Fraction(int(match[3]), scale * nines)
    return f"({value.numerator}/{value.denominator})"


def _lexemes(text: str) -> list[str]:
    """Lexemes without spaces; a run of letters is a function's name or a product of letters."""
    found: list[str] = []
    for match in _LEXEME.finditer(text):
        kind, lexeme = match.lastgroup, match[0]
        if kind == "other":
            raise Unreadable("a sign that is no part of an expression")
        if kind == "number" and found and found[-1][0] in "0123456789." and found[-2:-1] != ["_"]:
            raise Unreadable("numbers side by side")
        if kind == "word":
            found.extend(_words(lexeme))
        elif kind != "space":
            found.append(lexeme.removesuffix(".") if kind == "number" else lexeme)
    return found


def _words(run: str) -> list[str]:
    if run in _FUNCTIONS or run in {"pi", "sqrt"}:
        return ["\\" + run]
    for name in ("sqrt", "pi", "sin", "cos", "tan", "ln", "log"):
        head, found, tail = run.partition(name)
        if found and len(head) <= 1 and len(tail) <= 1:
            return [*head, "\\" + name, *tail]
    if len(run) > 3:
        raise Unreadable("a word")
    return list(run)


class _Reader(Descent):
    """`bars` counts the absolute values that are open."""

    def __init__(self, lexemes: list[str]) -> None:
        super().__init__(lexemes)
        self.bars = 0

    def product(self, depth: int) -> Node:
        """Factors joined by a sign or by nothing, from left to right."""
        node = self.signed(depth)
        while True:
            lexeme = self.peek()
            if lexeme in _OPERATORS:
                self.take()
                node = (_OPERATORS[lexeme], node, self.signed(depth))
            elif self.begins_factor(lexeme):
                node = ("*", node, self.signed(depth))
            else:
                return node

    def begins_factor(self, lexeme: str) -> bool:
        """Whether a lexeme can follow a factor with no sign between."""
        if not lexeme or lexeme[0] in "0123456789.":
            return bool(lexeme) and self.lexemes[self.position - 1] in {"}", ")"}
        if lexeme == "|":
            return self.bars == 0
        if lexeme in {"\\rfloor", "\\rceil"}:
            return False
        return lexeme in {"(", "{", "["} or lexeme.isalpha() or (lexeme[0] == "\\" and lexeme[1:].isalpha())

    def power(self, depth: int) -> Node:
        """Factorials, exponents and degree marks after a primary."""
        node = self.primary(depth)
        while self.peek() in {"!", "^"}:
            if self.take() == "!":
                node = ("!", node)
            elif self.peek() == "\\circ":
                self.take()
                node = ("*", node, DEGREE)
            else:
                node = ("^", node, self.tower(depth + 1))
        return node

    def tower(self, depth: int) -> Node:
        """An exponent; one that has an exponent itself comes first: 2^3^2 is 2^9."""
        node = self.argument(depth, signed=True)
        if self.peek() == "^" and self.lexemes[self.position + 1 : self.position + 2] != ["\\circ"]:
            self.take()
            node = ("^", node, self.tower(depth + 1))
        return node

    def primary(self, depth: int) -> Node:
        """The smallest complete expression."""
        lexeme = self.take()
        if lexeme in {"(", "{", "["}:
            node = self.sum(depth + 1)
            self.expect({"(": ")", "{": "}", "[": "]"}[lexeme])
            return node
        if lexeme == "|":
            self.bars += 1
            node = self.sum(depth + 1)
            self.bars -= 1
            self.expect("|")
            return ("abs", node)
        if lexeme[:1] and lexeme[0] in "0123456789.":
            return ("number", Fraction(lexeme.replace(",", "")))
        if lexeme in _APPLIED and self.peek() == "(":
            return self.application(lexeme, depth)
        if lexeme.isalpha():
            return _CONSTANTS.get(lexeme) or ("unknown", self.subscripted(lexeme))
        if lexeme[:1] == "\\":
            return self.command(lexeme[1:], depth)
        raise Unreadable("an operand is missing")

    def application(self, name: str, depth: int) -> Node:
        """`f(x+1)` as an unknown of its own, named by the argument's value at a point drawn from its letters."""
        argument = self.primary(depth + 1)
        point = {letter: Fraction(derive_seed("application", letter) % 9973 + 1, 997) for letter in unknowns(argument)}
        value = evaluate(argument, point)
        if not isinstance(value, Fraction) and abs(value) > _LARGEST_ARGUMENT:
            raise Unreadable("argument too large")
        return ("unknown", f"{name}({value if isinstance(value, Fraction) else f'{complex(value):.12g}'})")

    def subscripted(self, name: str) -> str:
        """A letter with the subscript that may follow; `x1` is x_1."""
        if self.peek().isdigit() and self.lexemes[self.position - 1] == name:
            return f"{name}_{self.take()}"
        if self.peek() != "_":
            return name
        self.take()
        parts = [self.take()]
        if parts[0] == "{":
            while self.peek() not in {"}", ""}:
                parts.append(self.take())
            self.expect("}")
        return name + "_" + "".join(parts).strip("{}")

    def command(self, name: str, depth: int) -> Node:
        """A LaTeX command with its arguments."""
        if name == "frac":
            return ("/", self.argument(depth + 1), self.argument(depth + 1))
        if name in {"binom", "dbinom", "tbinom"}:
            return ("binom", self.argument(depth + 1), self.argument(depth + 1))
        if name == "sqrt":
            return self.root(depth)
        if name in _FUNCTIONS:
            return self.function(name, depth)
        if name in {"lfloor", "lceil"}:
            node = self.sum(depth + 1)
            self.expect("\\r" + name[1:])
            return (name[1:], node)
        if name == "pi":
            return ("pi",)
        if name in _GREEK:
            return ("unknown", self.subscripted("\\" + name))
        raise Unreadable("a command we do not read")

    def root(self, depth: int) -> Node:
        """A square root, or one with an index in brackets."""
        if self.peek() != "[":
            return ("sqrt", self.argument(depth + 1))
        self.take()
        index = self.sum(depth + 1)
        self.expect("]")
        return ("root", self.argument(depth + 1), index)

    def function(self, name: str, depth: int) -> Node:
        r"""`\sin^2 x`, `\log_2 8`, `\sin 2x`: without parentheses the argument ends at a sign or another function."""
        base: Node | None = None
        exponent: Node | None = None
        if self.peek() == "_" and name == "log":
            self.take()
            base = self.argument(depth + 1)
        if self.peek() == "^":
            self.take()
            exponent = self.argument(depth + 1, signed=True)
            if exponent == ("-", ("number", Fraction(0)), ("number", Fraction(1))):
                raise Unreadable("an inverse function")
        inner = self.bare_argument(depth + 1)
        if name == "log":
            node: Node = ("log", inner, base or ("number", Fraction(10)))
        else:
            node = ("^", ("e",), inner) if name == "exp" else (name, inner)
        return node if exponent is None else ("^", node, exponent)

    def bare_argument(self, depth: int) -> Node:
        """A group, or factors side by side up to the next sign or function."""
        grouped = self.peek() in {"(", "{"}
        node = self.signed(depth)
        while not grouped and self.begins_factor(self.peek()) and self.peek()[1:] not in _FUNCTIONS:
            node = ("*", node, self.signed(depth))
        return node

    def argument(self, depth: int, signed: bool = False) -> Node:
        r"""A group, a command, a letter, or (as in `\frac12`) a single digit; an exponent may be a longer number."""
        lexeme = self.peek()
        if depth > MAX_NESTING:
            raise Unreadable("nested too deep")
        if signed and lexeme == "-":
            return self.signed(depth)
        if not signed and lexeme[:1].isdigit() and len(lexeme) > 1:
            self.lexemes[self.position] = lexeme[1:]
            return ("number", Fraction(lexeme[0]))
        return self.primary(depth)
