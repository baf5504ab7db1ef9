"""Prompts: the template's one hole is filled, and nothing else is touched."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment_core.prompts import opens_reasoning, read_template, render


def test_question_fills_the_template():
    assert render("User: {question}\nAssistant: <think>", "1+1?") == "User: 1+1?\nAssistant: <think>"


@given(st.text())
def test_braces_and_placeholders_in_a_question_stay_as_they_are(question):
    assert render("a {question} {other} b", question) == "a " + question + " {other} b"


def test_latex_question_with_the_placeholder_in_it_is_filled_once():
    assert render("Q: {question}", r"\frac{1}{2} {question}") == r"Q: \frac{1}{2} {question}"


def test_template_without_a_hole_is_refused():
    with pytest.raises(ValueError, match="write it where the question belongs"):
        render("Solve this", "1+1?")


@pytest.mark.parametrize(
    ("name", "opens"), [("reasoning", True), ("tiny", True), ("question_only", False), ("plain", False)]
)
def test_shipped_templates_open_the_reasoning_or_not(name, opens):
    assert opens_reasoning(read_template(name)) is opens


def test_trailing_newline_of_a_template_file_does_not_hide_the_opened_tag():
    assert opens_reasoning("User: {question}\nAssistant: <think>\n")
