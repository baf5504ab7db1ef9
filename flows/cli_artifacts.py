"""The `alignflow artifacts` commands: look into the store and look after it."""

from pathlib import Path
from typing import Annotated

import typer

from flows.user_errors import run_for_user as _user

artifacts = typer.Typer(no_args_is_help=True, help="Look into the artifact store.")
Root = Annotated[Path, typer.Option("--root", envvar="ALIGNFLOW_ROOT", help="Folder of data/store and mlruns.")]


Shared = Annotated[bool, typer.Option("--shared", help="In the shared store (ALIGNFLOW_STORE) instead.")]


@artifacts.command("ls")
def artifacts_ls(
    root: Root = Path("."), stage: Annotated[str | None, typer.Option(help="Only this stage.")] = None
) -> None:
    """One line per artifact, oldest first."""
    from flows.shelf import list_artifacts

    for line in _user(lambda: list(list_artifacts(root.resolve(), stage))):
        typer.echo(line)


@artifacts.command("show")
def artifacts_show(key: Annotated[str, typer.Argument(help="Key or its beginning.")], root: Root = Path(".")) -> None:
    """Files, settings, parents and producer of one artifact."""
    from flows.shelf import show_artifact

    typer.echo(_user(lambda: show_artifact(root.resolve(), key)))


@artifacts.command("accept")
def artifacts_accept(
    keys: Annotated[list[str], typer.Argument(help="Keys of the artifacts to keep, or their beginnings.")],
    reason: Annotated[str, typer.Option("--reason", help="Why the change of code does not matter to them.")],
    root: Root = Path("."),
) -> None:
    """Keep artifacts whose code changed harmlessly: they then answer for today's code."""
    from flows.shelf import accept_artifact

    for key in keys:
        for line in _user(lambda key=key: accept_artifact(root.resolve(), key, reason)):
            typer.echo(line)


@artifacts.command("verify")
def artifacts_verify(
    keys: Annotated[list[str] | None, typer.Argument(help="Keys or their beginnings; default: all.")] = None,
    root: Root = Path("."),
    shared: Shared = False,
) -> None:
    """Read every file and compare its sha256; exit code 1 and what to do if anything is damaged."""
    from flows.upkeep import verify_artifacts

    lines = _user(lambda: list(verify_artifacts(root.resolve(), keys or [], shared)))
    for line, _ in lines:
        typer.echo(line)
    raise typer.Exit(int(any(damage for _, damage in lines)))


@artifacts.command("gc")
def artifacts_gc(
    root: Root = Path("."),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    keep_days: Annotated[float, typer.Option(min=0, help="Keep what was made or used since so many days.")] = 30,
    states: Annotated[bool, typer.Option("--states", help="Also training states kept for runs of more steps.")] = False,
    shared: Shared = False,
) -> None:
    """Remove what neither the last run of any study nor any recent run stands on, and what kills left behind.

    In a shared store only what kills left behind: no root can tell what the studies of the others stand on.
    """
    from flows.upkeep import remove_unneeded, sweep_shared

    folder, common = root.resolve(), (keep_days, dry_run)
    lines = _user(lambda: list(sweep_shared(folder, *common) if shared else remove_unneeded(folder, *common, states)))
    for line in lines:
        typer.echo(line)


@artifacts.command("rebuild-mlflow")
def artifacts_rebuild_mlflow(root: Root = Path(".")) -> None:
    """Make MLflow anew from the store alone."""
    from flows.upkeep import rebuild_mlflow

    for line in _user(lambda: list(rebuild_mlflow(root.resolve()))):
        typer.echo(line)
