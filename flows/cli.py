"""The `alignflow` command. Nothing heavy is imported before the subcommand that needs it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows.cli_artifacts import artifacts
from flows.cli_hosts import setup, status, worker
from flows.cli_studies import studies
from flows.user_errors import run_for_user as _user
from flows.user_errors import tell

QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Defaults of the environment, for variables the user has not set: no telemetry, one voice on the console."""

PARTS = {
    "prepare": ("prepare", "Problems, traces, leakage report."),
    "sft": ("sft", "The SFT sweep."),
    "ei": ("expert_iteration", "Expert Iteration."),
    "grpo": ("grpo", "GRPO."),
    "analyze": ("analyze", "Intervals, paired tests, the split of each gain."),
    "report": ("report", "The study's HTML page."),
}
"""Command -> flow, help: the parts of a study."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Teach a language model to reason about mathematics, and show honestly how far each method got.",
)
app.add_typer(artifacts, name="artifacts")

Preset = Annotated[
    str,
    typer.Argument(
        help="A scale (smoke, tiny, gsm8k-1.5b, math-1.5b), SCALE/STUDY (see `alignflow studies`) or a YAML file."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. grpo.n_grpo_steps=20.")
]
Root = Annotated[Path, typer.Option("--root", envvar="ALIGNFLOW_ROOT", help="Folder of data/store and mlruns.")]
Where = Annotated[
    Literal["local", "work-pool"],
    typer.Option(
        "--executor", envvar="ALIGNFLOW_EXECUTOR", help="local, or work-pool: workers compute what needs torch."
    ),
]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Only say what would run, why, and what disk it takes.")]


def main() -> None:
    """Entry point: errors of the user's making are one paragraph on stderr and exit code 1."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ and (known := os.environ.get("PREFECT_SERVER_API_AUTH_STRING")):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", known)  # the embedded server will ask for it
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"alignflow {version('alignflow')}")
        except PackageNotFoundError:
            typer.echo(f"alignflow, not installed, from {Path(__file__).parents[1]}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    preset: Preset,
    overrides: Overrides = None,
    root: Root = Path("."),
    plan: PlanOnly = False,
    executor: Where = "local",
    budget: Annotated[
        str | None, typer.Option(help="Wall-clock time of each GRPO run with its evaluation, e.g. 4h or 30m.")
    ] = None,
) -> None:
    """The whole study."""
    from flows.settings import parse_hours

    extra = [] if budget is None else [f"budget.hours={_user(lambda: parse_hours(budget))}"]
    _run_flow("study", preset, [*(overrides or []), *extra], root, plan, executor=executor)


def _part(flow: str) -> Callable[..., None]:
    """The command that runs one flow on a preset."""

    def part(
        preset: Preset,
        overrides: Overrides = None,
        root: Root = Path("."),
        plan: PlanOnly = False,
        executor: Where = "local",
    ) -> None:
        _run_flow(flow, preset, overrides, root, plan, executor=executor)

    return part


for command_name, (flow_name, about) in PARTS.items():
    app.command(command_name, help=about)(_part(flow_name))


@app.command("eval")
def evaluation(
    preset: Preset,
    overrides: Overrides = None,
    root: Root = Path("."),
    plan: PlanOnly = False,
    executor: Where = "local",
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id, or key of a stage that holds a model; default: the preset's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder that receives results.jsonl and summary.json.")] = None,
    terms: Annotated[
        str | None,
        typer.Option(help="How to ask: r1_zero, question_only, few_shot or few_shot_boxed; default: the preset's."),
    ] = None,
    layout: Annotated[
        str, typer.Option("--format", help="lm-eval also writes lm-evaluation-harness's sample and result files.")
    ] = "jsonl",
) -> None:
    """Evaluate one model: sample, then grade."""
    if out is not None and out.exists() and not out.is_dir():
        raise typer.BadParameter(f"--out {out} is a file: give a folder")
    if layout != "jsonl" and out is None:
        raise typer.BadParameter(f"--format {layout} says how results are written: give --out, the folder for them")
    extra: dict[str, Any] = {"out": str(out.resolve()) if out else None, "executor": executor, "terms": terms}
    extra |= {"layout": layout}
    settings = list(overrides or [])
    if model is not None and _is_key(root, model):
        extra["artifact"] = model
    elif model is not None:
        settings += [f"model.source={model}", "model.scratch=null"]
    _run_flow("evaluation", preset, settings, root, plan, **extra)


@app.command()
def grade(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="JSONL files; - is stdin.")],
    reward: Annotated[str, typer.Option(help="r1_zero, question_only, number or countdown.")] = "r1_zero",
    mode: Annotated[str, typer.Option(help="fast, or thorough: with math-verify and checks of our own.")] = "fast",
    workers: Annotated[int, typer.Option(min=0, help="Grading processes; 0 grades in this one.")] = 1,
    out: Annotated[Path | None, typer.Option(help="File that receives the rows with their verdicts.")] = None,
    response_key: Annotated[str | None, typer.Option(help="Key of the response; default: the usual ones.")] = None,
    truth_key: Annotated[str | None, typer.Option(help="Key of the ground truth; default: the usual ones.")] = None,
) -> None:
    """Grade responses in JSONL files; exit code 1 if any row was malformed and so left out."""
    from rich.console import Console

    from flows.grading import RESPONSE_KEYS, TRUTH_KEYS, Keys, grade_files, summary_table

    keys = Keys((response_key,) if response_key else RESPONSE_KEYS, (truth_key,) if truth_key else TRUTH_KEYS)
    options: Any = (reward, mode, workers, keys)
    tally = _user(lambda: grade_files(files, out, *options), "nothing was written: grade again")
    Console(highlight=False).print(summary_table(tally, options[1]))
    raise typer.Exit(int(tally.malformed > 0))


@app.command()
def ui(
    root: Root = Path("."),
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect's UI.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow's UI.")] = 5000,
) -> None:
    """Prefect's and MLflow's UIs on loopback; Ctrl-C ends both."""
    from flows.servers import serve_uis

    raise typer.Exit(_user(lambda: serve_uis(root.resolve(), prefect_port, mlflow_port)))


@app.command()
def doctor(root: Root = Path(".")) -> None:
    """What this machine can do."""
    from flows.doctor import examine

    for name, text in examine(root.resolve()):
        typer.echo(f"{name:18} {text}")


@app.command()
def export(
    key: Annotated[str, typer.Argument(help="Key (or its beginning) of a stage that holds a model.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the checkpoint.")],
    root: Root = Path("."),
) -> None:
    """Copy a model out of the store as a plain Hugging Face folder."""
    from flows.shelf import export_model

    typer.echo(_user(lambda: export_model(root.resolve(), key, folder)))


for command in (studies, setup, worker, status):
    app.command()(command)


def _is_key(root: Path, text: str) -> bool:
    """Whether `text` is the beginning of a key rather than a folder or a hub id."""
    import re

    if not re.fullmatch("[0-9a-f]{6,32}", text) or Path(text).exists():
        return False
    from alignment_core.store_access import open_store

    return _user(lambda: open_store(root.resolve()).has_key(text))


def _run_flow(name: str, preset: str, overrides: list[str] | None, root: Path, plan: bool, **extra: Any) -> None:
    """Run a flow of flows/ under the live display; print its table and where the report lies. Or only its plan."""
    from rich.console import Console

    from flows.settings import load_config, parse_override
    from tasks.roots import require_writable

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=120)
    settings = _user(lambda: dict(parse_override(text) for text in overrides or []))
    _user(lambda: load_config(preset, settings, name))
    if plan:
        return _print_plan(console, name, {"preset": preset, "overrides": settings, **extra}, root.resolve())
    _user(lambda: require_writable(root.resolve()))
    console.print(f"alignflow {name} {preset}: starting Prefect", style="dim", markup=False)

    from flows.display import RichListener, results_table
    from tasks.workspace import watch_with

    # The whole path, so that the journal's command finds it from any folder; links are left as they were typed.
    source = str(Path(preset).absolute()) if Path(preset).suffix in {".yaml", ".yml"} else preset
    with RichListener(console) as listener:
        watch_with(listener)
        result, error = _user(lambda: _call_flow(name, root.resolve(), preset=source, overrides=settings, **extra))
    if result["rows"]:
        console.print(results_table(result["rows"]))
    counts = {how: list(result["stages"].values()).count(how) for how in ("ran", "resumed", "cached")}
    console.print("stages: " + ", ".join(f"{count} {how}" for how, count in counts.items()))
    for kind in ("report", "analysis"):
        if result.get(kind):
            console.print(f"{kind}: {result[kind]}")
    if extra.get("out"):
        console.print(f"results: {extra['out']}")
    if error is not None:
        tell(error)


def _call_flow(name: str, root: Path, **parameters: Any) -> tuple[dict[str, Any], Exception | None]:
    """Call a flow of flows/ under a server that outlives Ctrl-C long enough to hear of it.

    Returns what came of it, and the error that tells which members of the study failed, if some did.
    """
    from importlib import import_module

    from alignment_core.disk import disk_errors
    from alignment_core.interruption import stopping_on_sigterm

    with stopping_on_sigterm(), disk_errors(root):
        from flows.embedded_server import start_embedded_server
        from flows.runner import IncompleteStudy
        from tasks.pools import refusals_told

        start_embedded_server()
        flow = getattr(import_module(f"flows.{name}"), name)
        try:
            with refusals_told():
                return flow(root=str(root), **parameters), None
        except IncompleteStudy as error:
            return error.result, error


def _print_plan(console: Any, name: str, parameters: dict[str, Any], root: Path) -> None:
    """Print what a flow of flows/ would compute."""
    from importlib import import_module

    from flows.plan import describe, plan_flow

    flow = getattr(import_module(f"flows.{name}"), name)
    for line in describe(_user(lambda: plan_flow(flow, str(root), **parameters)), root):
        console.print(line, markup=False)
