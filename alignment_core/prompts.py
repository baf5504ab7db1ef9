"""From a question to the prompt a model is conditioned on: the one place that fills a template."""

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
