r"""From a question to the prompt a model is conditioned on: the one place that finds and fills a template.

A few-shot template has `{examples}` and after it a block with `{question}`: `{examples}Question: {question}\nAnswer:`.
An example is that same block with another question, continued by its solution; so one text says both what an example
looks like and how the question is asked.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from alignment_core.records import Example

PLACEHOLDER = "{question}"
EXAMPLES = "{examples}"
"""Where a few-shot template has its worked examples (`alignment_core.few_shot`)."""


def render(template: str, question: str) -> str:
    """Put `question` where the template says `{question}`; braces in either text stay as they are.

    Raises ValueError if the template has no `{question}`: every problem would get the same prompt; or if it is a
    few-shot one: nothing would fill its `{examples}`.
    """
    if PLACEHOLDER not in template:
        raise ValueError(f"the prompt template has no {PLACEHOLDER}: write it where the question belongs")
    if EXAMPLES in template:
        raise ValueError(
            f"the prompt template has {EXAMPLES}, and nothing to fill it: give it as evaluation.few_shot.template"
        )
    return template.replace(PLACEHOLDER, question)


def opens_reasoning(template: str) -> bool:
    """Whether the prompt itself opens the `<think>` block, so that a response begins inside it."""
    return template.rstrip().endswith("<think>")


def template_sha256(template: str) -> str:
    """sha256 of a template's text: what two evaluations asked alike have in common."""
    return hashlib.sha256(template.encode()).hexdigest()


def question_of(prompt: str, template: str) -> str | None:
    """The question that `template` makes this prompt of; None if it does not, or says nothing beside the question."""
    before, hole, after = template.partition(PLACEHOLDER)
    if not hole or PLACEHOLDER in after or not (before + after).strip():
        return None
    fits = prompt.startswith(before) and prompt.endswith(after) and len(prompt) > len(before) + len(after)
    return prompt[len(before) : len(prompt) - len(after)] if fits else None


def read_template(name: str) -> str:
    """Text of a shipped template (`alignment_core/templates/NAME.txt`) or of a file.

    Raises ValueError if there is neither, or if the text lacks `{question}`.
    """
    shipped = Path(__file__).parent / "templates" / f"{name}.txt"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in (Path(__file__).parent / "templates").glob("*.txt")))
        raise ValueError(f"no prompt template {name!r}: give one of {known}, or a file")
    text = path.read_text(encoding="utf-8")
    if "{question}" not in text:
        raise ValueError(f"prompt template {path} has no {{question}}: write it where the question belongs")
    return text


def render_few_shot(template: str, examples: Sequence[Example], question: str) -> str:
    """The prompt of `question` after the examples; braces in any text stay as they are.

    Raises ValueError unless the template has `{examples}` once, and `{question}` after it and only there.
    """
    intro, block = split_template(template)
    shown = "".join(f"{_continued(render(block, one.question), one.response)}\n\n" for one in examples)
    return intro + shown + render(block, question)


def split_template(template: str) -> tuple[str, str]:
    """What stands before `{examples}`, and the block after it."""
    intro, found, block = template.partition(EXAMPLES)
    if not found or EXAMPLES in block or PLACEHOLDER in intro or PLACEHOLDER not in block:
        raise ValueError(
            f"a few-shot template has {EXAMPLES} once and then a block with {PLACEHOLDER}, such as "
            f"'{EXAMPLES}Question: {PLACEHOLDER}\\nAnswer:': write it so, or leave evaluation.few_shot out"
        )
    return intro, block


def next_question_stop(template: str) -> str | None:
    """What a model writes that goes on with a question of its own: the beginning of the block; None if it has none."""
    head = split_template(template)[1].partition(PLACEHOLDER)[0].strip()
    return f"\n{head}" if head else None


def _continued(asked: str, response: str) -> str:
    """A question and its response, one space between them."""
    return f"{asked.rstrip(' ')} {response.strip()}"
