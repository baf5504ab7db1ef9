"""A host that runs a stand-in stage: `python -m counting_stage STORE STEPS SECONDS_PER_STEP [KEY]`.

It counts, saves at every step, and its result depends on every step. The outcome, or the error, is the last line.
Where COUNTING_GATE names a file, nobody takes the last step before the file is there, and a host that waits for
another says so with a file beside it.
"""

import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

from alignment_core.config import Config
from alignment_core.events import Event
from alignment_core.interruption import Interrupted
from alignment_core.manifest import Components
from alignment_core.stage import StageSpec, run_stage
from alignment_core.store_access import open_store_folder

SECONDS = [0.0]
GATE = "COUNTING_GATE"


class CountingStage(Config):
    """Count to `steps`."""

    steps: int = 4


def spec(steps: int, name: str = "") -> StageSpec:
    settings = CountingStage(steps=steps).model_dump()
    made = Components(stage="counting", config={**settings, "name": name}, inputs={}, code={}, versions={})
    return StageSpec(stage="counting", label="counting", config=settings, inputs={}, components=made, key=made.key())


def count(config: CountingStage, inputs: dict[str, Path], output: Path, run: Any) -> None:
    latest = run.latest_checkpoint()
    done, total = json.loads((latest / "count.json").read_text()) if latest else (0, 1)
    for step in range(done + 1, config.steps + 1):
        time.sleep(SECONDS[0])
        if step == config.steps:
            wait_at_gate()
        total = (total * 31 + step) % 1_000_003
        run.emit(step, {"train/loss": float(total)}, total=config.steps)
        if run.checkpoint_due():
            state = json.dumps([step, total])
            run.save_checkpoint(step, lambda folder, state=state: (folder / "count.json").write_text(state))
    (output / "result.txt").write_text(str(total))


def wait_at_gate() -> None:
    """Until whoever set one opens it."""
    while (gate := os.environ.get(GATE)) and not Path(gate).exists():
        time.sleep(0.01)


def expected(steps: int) -> str:
    """The result of a run that nobody disturbs."""
    total = 1
    for step in range(1, steps + 1):
        total = (total * 31 + step) % 1_000_003
    return str(total)


def install() -> None:
    """Make it the stage `counting` of this process."""
    module = types.ModuleType("alignment_core.stages.counting")
    module.CONFIG, module.run = CountingStage, count  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module


def hear(event: Event) -> None:
    text = f"say {event.name}" if event.kind == "say" else f"{event.kind} {event.step}"
    print(text, flush=True)
    if text.startswith("say waits for process") and (gate := os.environ.get(GATE)):
        Path(f"{gate}.{os.getpid()}").touch()


def main() -> None:
    install()
    SECONDS[0] = float(sys.argv[3])
    wanted = spec(int(sys.argv[2]), sys.argv[4] if len(sys.argv) > 4 else "")
    try:
        outcome = run_stage(open_store_folder(Path(sys.argv[1])), wanted, hear, checkpoint_seconds=0.0)
        print(outcome.model_dump_json(), flush=True)
    except Interrupted as error:
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
