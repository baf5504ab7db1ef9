"""What goes wrong for a user of the command line: one paragraph on stderr, and an exit code."""

from typing import Any, NoReturn

import typer


def run_for_user(action: Any, interrupted: str = "the same command goes on where this one stopped") -> Any:
    """Run an action; Ctrl-C and SIGTERM are one line, errors with a remedy are messages, bugs keep their traceback."""
    from alignment_core.failures import TOLD
    from alignment_core.interruption import exit_code_of

    try:
        return action()
    except BaseException as error:
        if code := exit_code_of(error):
            typer.echo(f"alignflow: interrupted; {interrupted}", err=True)
            raise typer.Exit(code) from error
        if isinstance(error, TOLD):
            tell(error)
        raise


def tell(error: BaseException) -> NoReturn:
    """Say what went wrong, with its notes and without secrets, and end with exit code 1."""
    from alignment_core.redaction import redact

    typer.echo(redact("\n".join([f"alignflow: {error}", *getattr(error, "__notes__", [])])), err=True)
    raise typer.Exit(1) from error
