r"""LaTeX answers as plain text, for the symbolic test: `\frac{1}{2}` -> `1/2`, `\sqrt3` -> `sqrt(3)`.

A small renderer of our own: one pass over tokens, nesting bounded. Symbols become their Unicode characters and an
accent a combining mark. A command that is not in the tables (`\operatorname`, `\mathbb`, rare symbols) is dropped and
its arguments are kept, so answers that differ in nothing else are equal. Everything that cannot be rendered raises
`Unreadable`, which the caller takes as "not equal".
"""

import re
from fractions import Fraction

from alignment_core.latex_normal import unwrap_text
from alignment_core.numeric import Unreadable

MAX_NESTING = 40


_TOKEN = re.compile(r"\\[A-Za-z]+\s*|\\.|[{}$~&\[\]]|[^\\{}$~&\[\]]+|\\", re.DOTALL)
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau"
    " upsilon phi chi psi omega"
)
_NAMES = dict(zip(_GREEK.split(" "), map(chr, range(0x3B1, 0x3CA)), strict=True)) | {
    "pi": "pi", "varepsilon": chr(0x3B5), "varphi": chr(0x3C6),
    "infty": "inf", "cup": "U", "cdot": "*", "times": "*", "div": "/", "pm": "±", "mp": "∓",
    "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "cap": "∩", "in": "∈", "circ": "∘",
    "approx": "≈", "to": "→", "emptyset": "∅", "varnothing": "∅", "ldots": "…", "dots": "…", "cdots": "…",
    "Delta": "Δ", "Omega": "Ω", "angle": "∠", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉",
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "arcsin": "arcsin",
    "arccos": "arccos", "arctan": "arctan", "log": "log", "ln": "ln", "exp": "exp", "gcd": "gcd", "max": "max",
    "min": "min", "quad": " ", "qquad": " ", "mid": "|",
    # Logic and sets
    "land": "∧", "wedge": "∧", "lor": "∨", "vee": "∨", "neg": "¬", "lnot": "¬", "forall": "∀", "exists": "∃",
    "nexists": "∄", "top": "⊤", "bot": "⊥", "subset": "⊂", "supset": "⊃", "subseteq": "⊆", "supseteq": "⊇",
    "subsetneq": "⊊", "supsetneq": "⊋", "notin": "∉", "ni": "∋", "setminus": "∖", "sqcup": "⊔", "sqcap": "⊓",
    "bigcup": "⋃", "bigcap": "⋂", "aleph": "ℵ", "complement": "∁",
    # Relations and arrows
    "equiv": "≡", "cong": "≅", "sim": "∼", "simeq": "≃", "propto": "∝", "ll": "≪", "gg": "≫", "leqslant": "⩽",
    "geqslant": "⩾", "lt": "<", "gt": ">", "prec": "≺", "succ": "≻", "parallel": "∥", "nparallel": "∦",
    "perp": "⟂", "nmid": "∤", "vdash": "⊢", "models": "⊨", "rightarrow": "→", "leftarrow": "←",
    "gets": "←", "leftrightarrow": "↔", "Rightarrow": "⇒", "implies": "⟹", "Leftarrow": "⇐", "impliedby": "⟸",
    "Leftrightarrow": "⇔", "iff": "⟺", "mapsto": "↦", "longrightarrow": "⟶", "longleftarrow": "⟵",
    "Longrightarrow": "⟹", "Longleftarrow": "⟸", "Longleftrightarrow": "⟺", "uparrow": "↑", "downarrow": "↓",
    # Operators and signs
    "sum": "∑", "prod": "∏", "int": "∫", "iint": "∬", "oint": "∮", "nabla": "∇", "partial": "∂", "oplus": "⊕",
    "ominus": "⊖", "otimes": "⊗", "odot": "⊙", "ast": "∗", "star": "⋆", "bullet": "∙", "dagger": "†",
    "prime": "′", "hbar": "ℏ", "ell": "ℓ", "Re": "ℜ", "Im": "ℑ", "triangle": "△", "square": "□", "vdots": "⋮",
    "ddots": "⋱", "langle": "⟨", "rangle": "⟩", "vert": "|", "lvert": "|", "rvert": "|", "Vert": "‖", "lVert": "‖",
    "rVert": "‖", "backslash": "\\", "choose": " choose ", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh",
    "lim": "lim", "det": "det", "dim": "dim", "ker": "ker", "arg": "arg", "sup": "sup",
    "inf": "infimum",
    # Greek capitals; the verdict ignores case, so they equal their small letters
    "Gamma": "Γ", "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Upsilon": "Υ", "Phi": "Φ",
    "Psi": "Ψ",
}  # fmt: skip
_ACCENTS = {
    "bar": 0x304, "overline": 0x305, "hat": 0x302, "widehat": 0x302, "tilde": 0x303, "widetilde": 0x303,
    "vec": 0x20D7, "overrightarrow": 0x20D7, "dot": 0x307, "ddot": 0x308, "acute": 0x301, "grave": 0x300,
    "check": 0x30C, "breve": 0x306, "mathring": 0x30A,
}  # fmt: skip
"""Combining characters, which follow every character that their accent covers."""
_DISCARDED = {"mbox", "label"}
_MATRICES = {"pmatrix", "bmatrix", "vmatrix", "matrix", "array", "smallmatrix"}


def render(text: str) -> str:
    r"""`text` with its LaTeX commands rendered; mixed numbers get a space before the fraction.

    As in the published grader a fraction gets no parentheses: `\frac{1+x}{2}` reads `1+x/2` on both sides.
    """
    return _Renderer(_TOKEN.findall(text)).sequence(0, None).strip()


class _Renderer:
    """Recursive descent over the tokens; `position` is the next one to read."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0

    def sequence(self, depth: int, end: str | None) -> str:
        """Everything up to `end` (or the end of the text: unclosed groups are tolerated)."""
        if depth > MAX_NESTING:
            raise Unreadable("nested too deep")
        parts = []
        while self.position < len(self.tokens):
            token = self.tokens[self.position]
            self.position += 1
            if token == end:
                break
            parts.append(self.token(token, depth))
        return "".join(parts)

    def token(self, token: str, depth: int) -> str:
        """One token rendered, with the arguments it takes."""
        if token == "{":
            return self.sequence(depth + 1, "}")
        if token in "}$":
            return ""
        if token == "~":
            return " "
        if token.startswith("\\"):
            return self.command(token[1:].rstrip() or token[1:], depth)
        return token

    def command(self, name: str, depth: int) -> str:
        """A command by name; unknown ones vanish and leave their arguments to be read as text."""
        if name in {"frac", "dfrac", "tfrac", "cfrac"}:
            upper = self.argument(depth)
            return f" {upper}/{self.argument(depth)}"
        if name == "sqrt":
            index = self.option(depth)
            return f"{'root' + index if index else 'sqrt'}({self.argument(depth)})"
        if name == "begin":
            return self.environment(self.argument(depth), depth)
        if name in {"end", *_DISCARDED}:
            self.argument(depth)
            return ""
        if name in _ACCENTS:
            mark = chr(_ACCENTS[name])
            return "".join(char if char.isspace() else char + mark for char in self.argument(depth))
        if name in {",", ";", ":"} or name.isspace():
            return " "
        if name == "\\":
            return "\n"
        return _NAMES.get(name, name if not name.isalpha() and name not in "!()[]" else "")

    def argument(self, depth: int) -> str:
        """The group, command or single character that follows."""
        while self.position < len(self.tokens) and not self.tokens[self.position].strip():
            self.position += 1
        if self.position >= len(self.tokens):
            raise Unreadable("a command lacks its argument")
        token = self.tokens[self.position]
        if token[0] in "\\{}$~&[]":
            self.position += 1
            if depth >= MAX_NESTING:
                raise Unreadable("nested too deep")
            return self.token(token, depth + 1)
        token = token.lstrip()
        self.tokens[self.position] = token[1:]
        return token[0]

    def option(self, depth: int) -> str:
        """The bracketed option that follows, if any."""
        if self.position < len(self.tokens) and self.tokens[self.position] == "[":
            self.position += 1
            return self.sequence(depth + 1, "]")
        return ""

    def environment(self, name: str, depth: int) -> str:
        """A matrix as `[a&b;c&d]`, anything else as its content."""
        if name == "array":
            self.argument(depth)
        start = self.position
        while self.position < len(self.tokens) and self.tokens[self.position].rstrip() != "\\end":
            self.position += 1
        inner = _Renderer(self.tokens[start : self.position]).sequence(depth + 1, None)
        if self.position < len(self.tokens):
            self.position += 1
            self.argument(depth)
        if name not in _MATRICES:
            return inner
        return "[" + ";".join("&".join(cell.strip() for cell in row.split("&")) for row in inner.split("\n")) + "]"


_UNIT_POWER = re.compile(
    r"(?:degree|centimeter|cm|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard)"
    r"(?:es)?s? *(?:\^[0-9]+)?"
)
_DEGREE_MARK = re.compile(r"\^ *\\circ")
_MAGNITUDES = (("million", "*10^6"), ("billion", "*10^9"), ("trillion", "*10^12"))
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.0*)?", re.ASCII)
_THOUSANDS_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_MIXED = re.compile(r"(?<=[0-9]) +(?=[0-9])")


def plain_text(text: str) -> str:
    """The rendered, space-free, lower-case spelling on which the symbolic test works; raises `Unreadable`."""
    text = unwrap_text(text.strip())
    for mark in ("\\%", "\\$", "$", "%"):
        text = text.replace(mark, "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for word, power in _MAGNITUDES:
        text = text.replace(word, power)
    text = _DEGREE_MARK.sub("", _UNIT_POWER.sub("", text))
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = _integer_or_same(text)
    if "\\" in text:
        text = render(text)
    text = _MIXED.sub("+", re.sub(r"- *", "-", text)).replace(" ", "")
    text = text.replace("{", "").replace("}", "").lower()
    return _integer_or_same(_THOUSANDS_COMMA.sub("", text))


def integer_value(text: str) -> int | None:
    """The integer that `text` spells (thousands commas and `2.0` allowed, off by at most 1e-7), else None."""
    if len(text) > 400:
        return None
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if not _NUMBER.fullmatch(text):
        return None
    value = Fraction(text)
    nearest = round(value)
    return nearest if abs(value - nearest) <= Fraction(1, 10**7) else None


def _integer_or_same(text: str) -> str:
    value = integer_value(text.strip())
    return text if value is None else str(value)
