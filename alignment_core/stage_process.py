"""One stage in a process of its own: `python -m alignment_core.stage_process SPEC.json STORE`.

SPEC.json holds a `StageSpec` (`spec.model_dump_json()`), STORE is the folder of the artifact store. The outcome
is printed as one line of JSON; what the stage says and why it failed goes to stderr. Exit code 0: the artifact is
there; 1: an error, its remedy said; 143 and 130: stopped by SIGTERM or Ctrl-C, and saved.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from alignment_core.changes import differences
from alignment_core.events import Event
from alignment_core.failures import TOLD, HostError
from alignment_core.fingerprint import stage_fingerprint
from alignment_core.interruption import Interrupted
from alignment_core.operation import STAGE_PYTHON
from alignment_core.stage import StageSpec, run_stage
from alignment_core.store_access import open_store_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stage; return the exit code."""
    parser = argparse.ArgumentParser("python -m alignment_core.stage_process", description="Run one stage.")
    parser.add_argument("spec", type=Path, help="JSON file with the stage's spec")
    parser.add_argument("store", type=Path, help="folder of the artifact store")
    given = parser.parse_args(arguments)
    os.environ.pop(STAGE_PYTHON, None)  # this is the interpreter it names, or one that was chosen instead
    try:
        spec = read_spec(given.spec)
        print(run_stage(open_store_folder(given.store), spec, _say).model_dump_json(), flush=True)
    except Interrupted as error:
        _complain(f"{spec.label} {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _complain("stopped by SIGINT")
        return 128 + signal.SIGINT
    except TOLD as error:
        _complain(str(error))
        return 1
    return 0


def read_spec(path: Path) -> StageSpec:
    """The spec in a file.

    Raises ValueError if it is none, HostError if it was made by other code or libraries than this process runs.
    """
    spec = StageSpec.model_validate_json(path.read_bytes())
    require_same_code(spec, str(path))
    return spec


def require_same_code(spec: StageSpec, name: str) -> None:
    """Raise HostError if the spec that `name` holds was made by other code or libraries than this process runs."""
    if what := other_code(spec):
        raise HostError(f"{name} was made elsewhere ({what}): run it with the code that made it, or make it anew")


def other_code(spec: StageSpec) -> str:
    """What code or libraries differ here from those the spec was made by, in words; empty if none."""
    code = stage_fingerprint(spec.stage, spec.config)
    here = spec.components.model_copy(update={"code": code.definitions, "versions": code.versions})
    if here.key() == spec.key:
        return ""
    return "; ".join(differences(spec.components, here)) or "its key is not that of its components"


def _say(event: Event) -> None:
    if event.kind == "say":
        print(event.name, file=sys.stderr, flush=True)


def _complain(text: str) -> None:
    print(f"alignflow: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
