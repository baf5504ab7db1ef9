"""From a source's own solution text to the short gold answer a grader can compare with.

These functions read data sets, never model output under judgement: what a policy wrote is parsed by
`alignment_core.grading` alone.
"""

import re

GSM8K_MARK = "####"
CALCULATOR = re.compile(r"<<[^<>]*>>")
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
PROSE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
CLOSING_PHRASE = re.compile(
    r"final answer(?: is)?\s*:?\s*(?:the final answer is\s*:?\s*)?\$+\s*(?P<math>[^$\n]+?)\s*\$+", re.IGNORECASE
)
PROSE_WORDS = 5
"""Most words outside LaTeX commands that an answer on one line has."""
PROSE_WORDS_OF_LINES = 2
"""The same for several lines, where a solution is likelier."""
LONGEST_GOLD = 400
TAIL = 400
"""Characters at the end of a long gold that math-verify reads."""


def last_answer_tag(text: str) -> str | None:
    """Content of the last `<answer> … </answer>`; None if there is none, or it is empty."""
    _, opened, rest = text.rpartition("<answer>")
    content, closed, _ = rest.partition("</answer>")
    return content.strip() or None if opened and closed else None


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{…}` (or `\fbox{…}`), braces matched; `\boxed 2` gives `2`.

    None if there is no box, or the last one is never closed.
    """
    boxes = list(BOX.finditer(text))
    if not boxes:
        return None
    rest = text[boxes[-1].end() :]
    if not rest.startswith("{"):
        bare = re.match(r"[^\s${}\\]+", rest)
        return bare.group().rstrip(".,;") if bare else None
    depth, position = 0, 0
    while position < len(rest):
        if rest[position] == "\\":
            position += 2
            continue
        depth += {"{": 1, "}": -1}.get(rest[position], 0)
        if depth == 0:
            return rest[1:position]
        position += 1
    return None


def has_unbraced_box(text: str) -> bool:
    r"""Whether the last box is of the `\boxed 2` kind."""
    boxes = list(BOX.finditer(text))
    return bool(boxes) and not text[boxes[-1].end() :].startswith("{")


def split_gsm8k(answer: str, keep_calculator_marks: bool = False) -> tuple[str, str]:
    """The reasoning before the last `####` and the raw gold text after it.

    Calculator marks (`<<48/2=24>>`) leave the reasoning unless they are to be kept. Raises ValueError without `####`.
    """
    reasoning, mark, gold = answer.rpartition(GSM8K_MARK)
    if not mark:
        raise ValueError(f"the answer has no {GSM8K_MARK!r} line: end it with '#### n'")
    return strip_calculator(reasoning, keep_calculator_marks).strip(), gold.strip()


def ends_as_gsm8k(answer: str) -> bool:
    """Whether the last line holds `####`; elsewhere it may be a Markdown heading."""
    return GSM8K_MARK in answer.strip().rpartition("\n")[2]


def strip_calculator(text: str, keep: bool = False) -> str:
    """The text without `<<…>>` marks, or as it is when they are to be kept."""
    return text if keep else CALCULATOR.sub("", text)


def plain_number(gold: str) -> str:
    """A GSM8K gold without thousands commas, dollar sign and closing full stop: `$1,250.` gives `1250`."""
    return gold.replace(",", "").strip().lstrip("$").removesuffix(".").strip()


def is_long(gold: str) -> bool:
    """Whether a gold is prose or a whole solution rather than an answer.

    LaTeX commands are no prose; the longest true answer of MATH (a matrix, 159 characters) is short by this rule.
    """
    allowed = PROSE_WORDS_OF_LINES if "\n" in gold.strip() else PROSE_WORDS
    return len(gold) > LONGEST_GOLD or len(PROSE_WORD.findall(gold)) > allowed


def short_answer(text: str) -> str | None:
    r"""The short answer a long gold text ends in, or None if it holds none.

    Looked for in this order: the last box, `#### n`, "final answer is $…$", and whatever math-verify (an
    optional dependency) reads out of the last 400 characters. A text without a digit or a formula there has none.
    """
    boxed = last_boxed(text)
    if boxed:
        return boxed.strip()
    if ends_as_gsm8k(text):
        return plain_number(split_gsm8k(text)[1]) or None
    closing = list(CLOSING_PHRASE.finditer(text))
    if closing:
        return closing[-1].group("math")
    tail = text[-TAIL:]
    return _read_by_math_verify(tail) if re.search(r"[0-9$]|\\[(\[]", tail) else None


def _read_by_math_verify(text: str) -> str | None:
    """The piece of `text` math-verify takes for its answer, as written there."""
    try:
        from math_verify import parse
    except ImportError as error:
        raise ValueError(
            "a gold answer is a whole text, and reading the short answer out of it needs math-verify: "
            "install math-verify, or give short answers in the data"
        ) from error
    # Its own time limit uses SIGALRM, which fails off the main thread; the text is short and only parsed.
    found = parse(text, parsing_timeout=None)
    written = [part for part in found if isinstance(part, str)]
    return written[0].strip() or None if written else None
