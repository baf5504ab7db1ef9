"""Traces: the strict form, and ready-made responses fitted to another template."""

import pytest

from alignment_core.traces import fit_response, question_in, strict_trace

THINK = "User: {question}\nAssistant: <think>"
BARE = "{question}\n"


def test_strict_trace_follows_the_prompt():
    assert strict_trace("a\nb ", "8", THINK) == " a\nb </think> <answer> 8 </answer>"
    assert strict_trace("a", "8", BARE) == "<think> a </think> <answer> 8 </answer>"


@pytest.mark.parametrize(
    ("response", "prompt", "template", "fitted"),
    [
        (" r </think>", "Q <think>", THINK, " r </think>"),
        ("r </think>", "Q <think>", BARE, "<think> r </think>"),
        (" r </think>", "Q <think>", BARE, "<think> r </think>"),
        ("<think> r </think>", "Q", THINK, " r </think>"),
        ("<think> r </think>", "Q", BARE, "<think> r </think>"),
        ("plain r", "Q", BARE, "plain r"),
    ],
)
def test_responses_fit_the_template(response, prompt, template, fitted):
    assert fit_response(response, template, prompt) == fitted


def test_question_is_found_in_conversation_prompts_only():
    assert question_in("Rules: a User asks.\n\nUser: Two\nlines?\nAssistant: <think>") == "Two\nlines?"
    assert question_in("User: x?\nAssistant: <think>") == "x?"
    assert question_in("What is 1+1?") is None
