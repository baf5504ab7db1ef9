"""From a raw row to question, gold answer and trace: one parser per known shape of row.

Shapes: GSM8K {question, answer `… #### n`}, MATH {problem, solution and/or answer}, {question, answer},
{prompt, response[, ground_truth]}, {prompt, messages} (chat rows such as Tulu's), and
{problem, reasoning_trace, expected_answer}. What needed care is recorded with the row, never dropped silently.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from alignment_core import gold_answers
from alignment_core.problem_sources import RawRow
from alignment_core.prompts import question_of, render
from alignment_core.records import Problem
from alignment_core.traces import fit_response, question_in, strict_trace

Meta = dict[str, str | int | float | bool | None]
Care = tuple[str, str]
"""What was odd about a row, and what was done."""


@dataclass(frozen=True)
class ParsedRow:
    """What a row says, before a template is chosen. At most one of `reasoning` and `response` is given."""

    question: str
    gold: str
    reasoning: str | None = None
    """A solution to be put into trace form."""
    response: str | None = None
    """A ready-made response, kept as it is."""
    prompt: str | None = None
    """The prompt `response` was written after."""
    keep_prompt: bool = False
    """The prompt has no question to extract: ask it as it is."""
    id: str | None = None
    meta: Meta = field(default_factory=dict)
    care: tuple[Care, ...] = ()


Parser = Callable[[RawRow], ParsedRow]


def to_problem(row: ParsedRow, default_id: str, template: str) -> Problem:
    """Render the prompt and fit the trace to it. A row without a gold gets no trace made from its solution."""
    question, known = row.question, not row.keep_prompt
    if row.keep_prompt and (asked := question_of(row.question, template)) is not None:
        question, known = asked, True
    if known:
        prompt = render(template, question)
        trace = fit_response(row.response, template, row.prompt) if row.response is not None else None
    else:
        prompt, trace = question, row.response
    if row.reasoning is not None and row.gold:
        trace = strict_trace(row.reasoning, row.gold, template)
    return Problem(
        id=row.id or default_id,
        question=question,
        prompt=prompt,
        ground_truth=row.gold,
        trace=trace,
        meta=row.meta,
    )


def gsm8k_parser(keep_calculator_marks: bool) -> Parser:
    """Parser of {question, answer} rows whose answer ends in `#### n`."""

    def parse(row: RawRow) -> ParsedRow:
        question, answer = text_of(row, "question"), text_of(row, "answer")
        try:
            reasoning, written = gold_answers.split_gsm8k(answer, keep_calculator_marks)
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from error
        gold = gold_answers.plain_number(written)
        if not gold:
            raise ValueError(f"{row.where}: nothing follows '####': write the gold answer there")
        care = () if gold == written else ((f"gold written {written!r}", f"read as {gold!r}"),)
        return ParsedRow(question, gold, reasoning=reasoning, id=_own_id(row), care=care)

    return parse


def parse_math(row: RawRow) -> ParsedRow:
    r"""MATH row: the gold is the solution's last box; `answer` where there is no solution or no box in it."""
    question = text_of(row, "problem")
    solution = text_of(row, "solution") if row.fields.get("solution") is not None else None
    stated = text_of(row, "answer", may_be_empty=True) if row.fields.get("answer") is not None else None
    boxed = gold_answers.last_boxed(solution) if solution is not None else None
    gold = stated if boxed is None else boxed
    if gold is None:
        raise ValueError(f"{row.where}: neither a closed \\boxed{{…}} in `solution` nor an `answer`: add one")
    care: list[Care] = []
    if boxed is None and solution is not None:
        care.append(("no closed box in the solution", "took the answer field"))
    if boxed is not None and solution is not None and gold_answers.has_unbraced_box(solution):
        care.append(("box without braces", f"read as {boxed!r}"))
    if boxed is not None and stated is not None and boxed.strip() != stated.strip():
        care.append((f"answer field {stated!r} differs from the last box", f"took the box, {boxed!r}"))
    gold, shortened = _shortened(gold.strip())
    subject = row.fields.get("subject", row.fields.get("type"))
    meta = _meta({"level": row.fields.get("level"), "subject": subject, "in_math500": row.fields.get("in_math500")})
    return ParsedRow(
        question, gold, reasoning=solution, id=_own_id(row), meta=meta, care=(*care, *shortened, *_empty(gold))
    )


def any_parser(keep_calculator_marks: bool) -> Parser:
    """Parser that chooses by the fields a row has; ValueError lists the shapes it knows."""
    gsm8k = gsm8k_parser(keep_calculator_marks)

    def parse(row: RawRow) -> ParsedRow:
        names = set(row.fields)
        if {"problem", "reasoning_trace"} <= names:
            return parse_reasoning_trace(row)
        if {"prompt", "response"} <= names:
            return parse_prompt_response(row)
        if {"prompt", "messages"} <= names:
            return parse_messages(row)
        if {"question", "answer"} <= names:
            return gsm8k(row) if gold_answers.ends_as_gsm8k(str(row.fields["answer"])) else parse_question_answer(row)
        if "problem" in names and names & {"solution", "answer"}:
            return parse_math(row)
        raise ValueError(
            f"{row.where}: unknown fields {sorted(names)}: rename them to one of {{question, answer}}, "
            "{prompt, response[, ground_truth]}, {prompt, messages}, {problem, solution and/or answer}, "
            "{problem, reasoning_trace, expected_answer}"
        )

    return parse


def parse_question_answer(row: RawRow) -> ParsedRow:
    """{question, answer}: a short answer is the gold; a long one is a solution the gold is read from."""
    answer = text_of(row, "answer", numbers=True)
    gold, care = _shortened(answer)
    reasoning = answer if gold != answer else None
    return ParsedRow(text_of(row, "question"), gold, reasoning=reasoning, id=_own_id(row), care=care)


def parse_messages(row: RawRow) -> ParsedRow:
    """{prompt, messages: [{role, content}]}: the last assistant turn is the solution the gold is read from."""
    messages = row.fields["messages"]
    turns = messages if isinstance(messages, list) else []
    said = [turn["content"] for turn in turns if isinstance(turn, dict) and turn.get("role") == "assistant"]
    if not said or not isinstance(said[-1], str) or not said[-1].strip():
        raise ValueError(f"{row.where}: `messages` has no assistant turn with text: add one or remove the row")
    gold, care = _short_of_solution(said[-1])
    return ParsedRow(text_of(row, "prompt"), gold, reasoning=said[-1], id=_own_id(row), care=care)


def parse_prompt_response(row: RawRow) -> ParsedRow:
    """{prompt, response[, ground_truth]}: a conversation prompt yields its question, any other is asked as it is."""
    prompt, response = text_of(row, "prompt"), text_of(row, "response")
    question = question_in(prompt)
    if row.fields.get("ground_truth") is not None:
        gold, care = _shortened(text_of(row, "ground_truth", numbers=True, may_be_empty=True))
        care = (*care, *_empty(gold))
    else:
        tagged = gold_answers.last_answer_tag(response)
        gold, care = _shortened(tagged) if tagged is not None else _short_of_solution(response)
    return ParsedRow(
        question if question is not None else prompt,
        gold,
        response=response,
        prompt=prompt,
        keep_prompt=question is None,
        id=_own_id(row),
        care=care,
    )


def parse_reasoning_trace(row: RawRow) -> ParsedRow:
    """{problem, reasoning_trace, expected_answer[, …]}: the trace is a response begun inside `<think>`."""
    trace = text_of(row, "reasoning_trace")
    no_gold = "expected_answer" in row.fields and row.fields["expected_answer"] is None
    stated = "" if no_gold else text_of(row, "expected_answer", numbers=True, may_be_empty=True)
    gold, care = _shortened(stated)
    response = trace if trace[:1].isspace() or trace.startswith("<think>") else " " + trace
    meta = _meta({"extracted_answer": row.fields.get("extracted_answer")})
    return ParsedRow(
        text_of(row, "problem"),
        gold,
        response=response,
        prompt="<think>",
        id=_own_id(row),
        meta=meta,
        care=(*care, *_empty(gold)),
    )


def text_of(row: RawRow, name: str, numbers: bool = False, may_be_empty: bool = False) -> str:
    """The text of a field (a number as text where `numbers`); ValueError if missing, of another type, or empty."""
    value = row.fields.get(name)
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        if name not in row.fields:
            raise ValueError(
                f"{row.where}: no field `{name}` among {sorted(row.fields)}: rename the column, choose the data.kind "
                "of this file, or remove the row"
            )
        found = "null" if value is None else type(value).__name__
        raise ValueError(f"{row.where}: field `{name}` is {found}, text is wanted: fix or remove the row")
    if not value.strip() and not may_be_empty:
        raise ValueError(f"{row.where}: field `{name}` is empty: fill it in or remove the row")
    return value


def _shortened(gold: str) -> tuple[str, tuple[Care, ...]]:
    """A short gold as it is; of prose or a whole solution, the short answer in it."""
    if not gold_answers.is_long(gold):
        return gold, ()
    short, care = _short_of_solution(gold)
    return short, care or ((f"gold is a text of {len(gold)} characters", f"took {short!r} from it"),)


def _short_of_solution(text: str) -> tuple[str, tuple[Care, ...]]:
    short = gold_answers.short_answer(text)
    if short is None:
        return text, (("gold is a text with no short answer in it", "kept as it is; no response will match it"),)
    return short, ()


def _empty(gold: str) -> tuple[Care, ...]:
    if gold.strip():
        return ()
    return (("gold answer is empty", "kept, without a trace of its own solution; no response will match it"),)


def _own_id(row: RawRow) -> str | None:
    """The row's own id: `id`, or MATH's `unique_id` without its file ending."""
    for name in ("unique_id", "id"):
        value = row.fields.get(name)
        if isinstance(value, str | int) and str(value):
            return str(value).removesuffix(".json")
    return None


def _meta(values: dict[str, object]) -> Meta:
    return {name: value for name, value in values.items() if isinstance(value, str | int | float | bool)}
