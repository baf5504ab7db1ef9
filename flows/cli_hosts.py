"""Commands for several hosts: `setup`, `worker`, `status`. They need a Prefect server that all of them reach."""

from pathlib import Path
from typing import Annotated

import typer

from flows.user_errors import run_for_user


def setup(
    limits: Annotated[
        list[str] | None, typer.Option("--limit", metavar="POOL=N", help="Flow runs at once in a pool, e.g. h100=8.")
    ] = None,
) -> None:
    """Pools, limits, the automation for dead runs and all deployments, on the Prefect server; harmless to repeat."""
    from flows.host_setup import set_up

    wanted = run_for_user(lambda: dict(parse_limit(text) for text in limits or []))
    lines = run_for_user(lambda: set_up(wanted))
    while (line := run_for_user(lambda: next(lines, None))) is not None:
        typer.echo(line)


def parse_limit(text: str) -> tuple[str, int]:
    """`h100=8` as pool and number; ValueError otherwise."""
    pool, _, number = text.partition("=")
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"--limit {text} is not POOL=N, e.g. --limit h100=8")
    return pool, int(number)


def worker(
    gpu: Annotated[str | None, typer.Option(help="GPUs to serve the pool h100 with, a worker each: 0,1.")] = None,
    multi: Annotated[str | None, typer.Option(help="GPUs to serve h100-multi with, one worker for all: 2,3.")] = None,
    cpu: Annotated[int, typer.Option(min=0, help="Flow runs at once to serve the pool cpu with.")] = 0,
    name: Annotated[str, typer.Option(help="Name of this host; default: its own.")] = "",
    root: Annotated[
        Path, typer.Option("--root", envvar="ALIGNFLOW_ROOT", help="Folder of data/store and mlruns on this host.")
    ] = Path("."),
) -> None:
    """Serve pools from this host until Ctrl-C; a worker that dies is started again."""
    from flows.host_setup import reachable_server
    from flows.host_workers import plan_workers
    from flows.worker_keeper import serve
    from tasks.roots import require_writable

    workers = run_for_user(lambda: plan_workers(gpu, multi, cpu, name))
    run_for_user(lambda: require_writable(root.resolve()))
    run_for_user(lambda: reachable_server("alignflow worker"))
    raise typer.Exit(run_for_user(lambda: serve(workers, root.resolve(), lambda line: print(line, flush=True))))


def status() -> None:
    """What runs where, on all hosts: flow runs, their progress, pools and workers."""
    from rich.console import Console

    from flows.host_status import show_status

    Console(highlight=False).print(run_for_user(show_status))
