"""From a question to the prompt a model is conditioned on: the one place that finds and fills a template."""

from pathlib import Path

PLACEHOLDER = "{question}"


def render(template: str, question: str) -> str:
    """Put `question` where the template says `{question}`; braces in either text stay as they are.

    Raises ValueError if the template has no `{question}`: every problem would get the same prompt.
    """
    if PLACEHOLDER not in template:
        raise ValueError(f"the prompt template has no {PLACEHOLDER}: write it where the question belongs")
    return template.replace(PLACEHOLDER, question)


def opens_reasoning(template: str) -> bool:
    """Whether the prompt itself opens the `<think>` block, so that a response begins inside it."""
    return template.rstrip().endswith("<think>")


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
