"""What the command makes of errors; the commands themselves are run in test_pipeline."""

import pytest
import typer

from alignment_core.failures import MemberError
from flows import cli
from flows.settings import parse_override


def interrupted() -> None:
    """Ctrl-C, whose handling fails because the embedded server is gone too."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise ConnectionError("connection refused") from None


def broken() -> None:
    """A stage's error, with the note that names its traceback."""
    error = ValueError("none of 8 samples is right")
    error.add_note("stage: select; traceback: somewhere")
    raise error


def test_an_interrupt_is_one_line_whatever_it_broke_on_its_way(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        cli._user(interrupted)
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err.startswith("alignflow: interrupted")


def test_an_error_comes_with_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        cli._user(broken)
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err.splitlines() == [
        "alignflow: none of 8 samples is right",
        "stage: select; traceback: somewhere",
    ]


def test_a_stage_s_own_remedy_is_a_paragraph_wherever_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    def stale() -> None:
        raise MemberError("after a weight sync vllm's log-probs differ: take sampling.backend transformers")

    with pytest.raises(typer.Exit):
        cli._user(stale)
    assert capsys.readouterr().err.startswith("alignflow: after a weight sync")


def test_a_bug_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        cli._user(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("text", "value"), [("a=2e-5", 2e-5), ("a='123e45'", "123e45"), ("a=[1, full]", [1, "full"]), ("a=null", None)]
)
def test_an_override_is_a_yaml_value_and_quotes_keep_text(text: str, value: object) -> None:
    assert parse_override(text) == ("a", value)


def test_an_override_that_is_no_yaml_says_so() -> None:
    with pytest.raises(ValueError, match=r"--set 'a=\[1' is not valid YAML"):
        parse_override("a=[1")
