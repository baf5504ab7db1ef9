"""Traces: responses to imitate, fitted to the prompt they follow.

A response is the text after the prompt. When the prompt ends in an opened `<think>`, the strict form is
` reasoning </think> <answer> gold </answer>`; otherwise the response opens the block itself.
"""

import re

from alignment_core.prompts import opens_reasoning, question_of

OPEN = "<think>"
CHAT = re.compile(
    r"(?:<\|im_start\|>system\n(?:(?!<\|im_end\|>).)*<\|im_end\|>\s*)?<\|im_start\|>user\n(?P<question>(?:(?!<\|im_end\|>).)*)"
    r"<\|im_end\|>\s*<\|im_start\|>assistant\n?\s*(?:<think>)?\s*",
    re.DOTALL,
)
"""One user turn in the chat form of Qwen and others (ChatML), begun for the assistant."""
INSTRUCTION = re.compile(r".*?### Instruction:\n(?P<question>.*?)\s*### Response:\s*", re.DOTALL)
"""The instruction form of Alpaca."""
CONVERSATION = re.compile(r"(?:\A|.*?\n)User: (?P<question>.*)\nAssistant:\s*(?:<think>)?\s*", re.DOTALL)


def strict_trace(reasoning: str, answer: str, template: str) -> str:
    """` reasoning </think> <answer> answer </answer>`, led by `<think>` when the template does not open it."""
    return trace(reasoning, f" </think> <answer> {answer} </answer>", template)


def trace(reasoning: str, ending: str, template: str) -> str:
    """` reasoning` + `ending`, led by `<think>` when the template does not open it."""
    lead = "" if opens_reasoning(template) else OPEN
    return f"{lead} {reasoning.strip()}{ending}"


def fit_response(response: str, template: str, prompt: str | None = None) -> str:
    """Move the opening `<think>` of a ready-made response to where `template` wants it; nothing else changes.

    `prompt` is the text the response was written after, if known: it may have opened the block already.
    """
    bare = response.lstrip()
    inside = not bare.startswith(OPEN) and (prompt is None or opens_reasoning(prompt))
    if opens_reasoning(template):
        return bare.removeprefix(OPEN) if bare.startswith(OPEN) else response
    return OPEN + (response if response[:1].isspace() else " " + response) if inside else response


def question_in(prompt: str) -> str | None:
    """The question of a prompt in a form that is known by its marks; None if it has another shape.

    Known are `… User: question / Assistant: <think>`, ChatML with one user turn, and Alpaca's instructions.
    """
    for form in (CONVERSATION, CHAT, INSTRUCTION):
        found = form.fullmatch(prompt)
        if found:
            return found.group("question").strip() if form is not CONVERSATION else found.group("question")
    return None


def embedded_question(prompt: str, template: str) -> str | None:
    """The question of a prompt of a known form, or of one that `template` makes; None if it has another shape."""
    found = question_in(prompt)
    return question_of(prompt, template) if found is None else found
