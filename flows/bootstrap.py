"""Sets up `.venv` in the checkout, then runs alignflow in it.

    python3 -m flows.bootstrap run tiny       an alignflow command, here `alignflow run tiny`
    python3 -m flows.bootstrap test -x        the tests, slow ones left out; further arguments go to pytest
    python3 -m flows.bootstrap install gpu    set up only, with extras (auth, bench, gpu, postgres, s3; pyproject.toml)

Needs Python 3.11 or 3.12 with pip, and a package index that pip can reach. The first start installs; later
ones see from a stamp in `.venv` that nothing has changed.
"""

# Standard library only, and it parses on Python 3.6: an old interpreter is told so instead of failing on syntax.
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

Version = Tuple[int, int]
Stamp = Dict[str, object]

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 12), (3, 11))
EXTRAS = {"auth", "bench", "dev", "gpu", "postgres", "s3"}
STAMP_NAME = "alignflow-stamp.json"
DEFAULT_TESTS = ["-m", "not slow"]

NO_PYTHON = """\
alignflow needs Python 3.11 or 3.12. This is Python {found} ({executable}),
and no python3.12 or python3.11 that runs was found on PATH.
Install one, for example with `apt-get install python3.11 python3.11-venv`, `brew install python@3.12`
or `pyenv install 3.12`, and start again with it: python3.12 -m flows.bootstrap ..."""

NO_VENV = """\
{python} cannot make a virtual environment: its venv or ensurepip module is missing.
On Debian and Ubuntu: apt-get install python{version}-venv. Then start again."""

GPU_HINT = """\
flash-attn is compiled where no ready build fits, which needs the CUDA toolkit (nvcc) and much memory (set MAX_JOBS=4
or less). To go without it: .venv/bin/uv pip install -e '.[dev]' 'vllm>=0.20.2,<0.23' -c {constraints}"""


class SetupError(Exception):
    """Something the user can mend; the message says what and how."""


def say(text: str, end: str = "\n") -> None:
    """Print progress to stderr: stdout belongs to the command that runs afterwards."""
    sys.stderr.write(text + end)
    sys.stderr.flush()


# Which interpreter


def version_of(python: str) -> Optional[Version]:
    """Ask an interpreter for its version; None if it does not run (a pyenv shim may not)."""
    try:
        answer = subprocess.run(
            [python, "-c", "import sys; print('%d %d' % sys.version_info[:2])"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
        )
        major, minor = answer.stdout.split()
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return int(major), int(minor)


def find_supported(search_path: str) -> Optional[str]:
    """Return the first python3.12, else python3.11, on the search path that really runs."""
    for version in SUPPORTED:
        for folder in search_path.split(os.pathsep):
            candidate = shutil.which("python%d.%d" % version, path=folder) if folder else None
            if candidate and version_of(candidate) == version:
                return candidate
    return None


def choose_python(own: Version, search_path: str) -> Tuple[str, Version]:
    """Return the interpreter to build `.venv` with: this one, or a supported one on the search path."""
    if own in SUPPORTED:
        return sys.executable, own
    other = find_supported(search_path)
    version = version_of(other) if other else None
    if other is None or version is None:
        raise SetupError(NO_PYTHON.format(found="%d.%d" % own, executable=sys.executable))
    say("alignflow needs Python 3.11 or 3.12 and this is %d.%d: using %s" % (own[0], own[1], other))
    return other, version


def require_venv(python: str, version: Version) -> None:
    """Raise SetupError where the distribution has split venv off its Python."""
    if subprocess.call([python, "-c", "import venv, ensurepip"], stderr=subprocess.DEVNULL) != 0:
        raise SetupError(NO_VENV.format(python=python, version="%d.%d" % version))


# Whether anything is to be done


def constraints_file(root: Path, extras: Sequence[str]) -> Path:
    """Return the pins that hold for these extras: vllm brings an older torch."""
    return root / ".ci" / ("constraints-gpu.txt" if "gpu" in extras else "constraints.txt")


def pinned(constraints: Path, package: str) -> Optional[str]:
    """Return the version a constraints file pins a package to."""
    for line in constraints.read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        if name == package:
            return version
    return None


def sees_gpu() -> bool:
    """Tell whether an NVIDIA driver is at hand."""
    return os.path.exists("/proc/driver/nvidia") or shutil.which("nvidia-smi") is not None


def wanted_stamp(root: Path, version: Version, extras: Sequence[str]) -> Stamp:
    """Return what decides whether `.venv` is up to date."""
    digest = hashlib.sha256()
    for path in (root / "pyproject.toml", constraints_file(root, extras)):
        digest.update(path.read_bytes() + b"\0")
    return {
        "inputs": digest.hexdigest(),
        "extras": sorted(extras),
        "python": "%d.%d" % version,
        "root": str(root),
        "gpu": sees_gpu(),
    }


def read_stamp(venv: Path) -> Stamp:
    """Return the stamp of a finished installation, empty if there is none or its interpreter is gone."""
    try:
        stamp = json.loads((venv / STAMP_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and (venv / "bin" / "python").exists() else {}


def write_stamp(venv: Path, stamp: Stamp) -> None:
    """Record what `.venv` holds."""
    (venv / STAMP_NAME).write_text(json.dumps(stamp), encoding="utf-8")


def must_rebuild(found: Stamp, wanted: Stamp) -> bool:
    """Tell whether `.venv` has to be made anew: other interpreter, moved checkout, a GPU that came or went."""
    return any(found.get(key) != wanted[key] for key in ("python", "root", "gpu"))


def recorded_extras(found: Stamp) -> List[str]:
    """Return the extras installed so far, which later starts keep."""
    extras = found.get("extras")
    return [str(extra) for extra in extras] if isinstance(extras, list) else []


# Installing


def environment(python: str) -> Dict[str, str]:
    """Return uv's environment: the system's certificates and pip's index, as the user has set them up for pip."""
    variables = dict(os.environ)
    variables.setdefault("UV_SYSTEM_CERTS", "1")
    listing = subprocess.run(
        [python, "-m", "pip", "config", "get", "global.index-url"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        universal_newlines=True,
    )
    index = variables.get("PIP_INDEX_URL") or listing.stdout.strip()
    if index and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & set(variables):
        variables["UV_DEFAULT_INDEX"] = index
    return variables


def step(label: str, command: Sequence[str], variables: Optional[Dict[str, str]] = None) -> None:
    """Run one command under a line that says what is done and how long it took; its output is shown if it fails."""
    say("  %s ..." % label, end="")
    start = time.time()
    done = subprocess.run(
        list(command),
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        errors="replace",
    )
    say(" %.1f s" % (time.time() - start))
    if done.returncode != 0:
        tail = "\n".join("    " + line for line in done.stdout.splitlines()[-25:])
        raise SetupError("that step failed with exit code %d:\n%s" % (done.returncode, tail))


def is_installed(venv: Path, package: str, version: Optional[str]) -> bool:
    """Tell whether a version of a package (a glob pattern) lies in `.venv`."""
    return any(venv.glob("lib/python*/site-packages/%s-%s.dist-info" % (package, version)))


def fetch_cpu_torch(python: str, version: str, folder: Path) -> bool:
    """Let pip, as the user has set it up, fetch the CPU build of torch into a folder; False if it knows none.

    A local version such as 2.13.0+cpu never matches the index's CUDA build, so a miss downloads nothing.
    """
    command = [python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries=1"]
    done = subprocess.run(
        [*command, "--dest", str(folder), "torch==%s+cpu" % version],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return done.returncode == 0 and any(folder.glob("torch-*.whl"))


def install_cpu_torch(python: str, venv: Path, constraints: Path, uv: Sequence[str]) -> None:
    """Install a CPU build of the pinned torch ahead of everything else, where one is at hand."""
    version = pinned(constraints, "torch")
    if version is None or is_installed(venv, "torch", version) or is_installed(venv, "torch", version + "+*"):
        return
    with tempfile.TemporaryDirectory() as folder:
        if not fetch_cpu_torch(python, version, Path(folder)):
            say("  no CPU build of torch %s at hand: the index's build, several GB with CUDA, is taken" % version)
            return
        source = ["--no-deps", "--no-index", "--find-links", folder]
        step("torch %s, CPU build" % version, list(uv) + source + ["torch==%s+cpu" % version])


def make_venv(python: str, version: Version, venv: Path) -> None:
    """Make `.venv` anew, whatever was there."""
    require_venv(python, version)
    step("virtual environment, Python %d.%d" % version, [python, "-m", "venv", "--clear", str(venv)])


def install(root: Path, python: str, extras: Sequence[str]) -> None:
    """Fill `.venv`: pip brings uv, uv brings the rest under the pins."""
    venv = root / ".venv"
    inner = str(venv / "bin" / "python")
    constraints = constraints_file(root, extras)
    if not is_installed(venv, "uv", pinned(constraints, "uv")):
        step("uv", [inner, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), "uv"])
    uv = [str(venv / "bin" / "uv"), "pip", "install", "--python", inner]
    if sys.platform == "linux" and "gpu" not in extras and not sees_gpu():
        install_cpu_torch(python, venv, constraints, uv)
    target = "%s[%s]" % (root, ",".join(sorted(extras)))
    try:
        step("alignflow and what it needs", [*uv, "-c", str(constraints), "-e", target], environment(python))
    except SetupError as error:
        if "gpu" not in extras:
            raise
        raise SetupError("%s\n%s" % (error, GPU_HINT.format(constraints=constraints.relative_to(root)))) from error


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the checkout while installing, so that two first starts do not write the same `.venv`."""
    import fcntl  # not on Windows, which is refused with a sentence before this

    handle = os.open(str(root), os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another start is setting up .venv; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_current(found: Stamp, root: Path, own: Version, extras: Sequence[str]) -> bool:
    """Tell whether `.venv` serves as it is. An unsupported interpreter is content with either supported one."""
    known = {"%d.%d" % version: version for version in SUPPORTED}
    version = own if own in SUPPORTED else known.get(str(found.get("python")))
    if version is None or not set(extras) <= set(recorded_extras(found)):
        return False
    return found == wanted_stamp(root, version, recorded_extras(found))


def ensure(root: Path, own: Version, extras: Sequence[str]) -> None:
    """Bring `.venv` up to date; at once if it already is."""
    venv = root / ".venv"
    if is_current(read_stamp(venv), root, own, extras):
        return
    python, version = choose_python(own, os.environ.get("PATH", ""))
    with alone(root):
        found = read_stamp(venv)
        if is_current(found, root, own, extras):
            return
        start = time.time()
        together = sorted({*extras, *recorded_extras(found)})
        wanted = wanted_stamp(root, version, together)
        rebuild = must_rebuild(found, wanted)
        say("setting up .venv (its packages are downloaded)" if rebuild else "updating .venv")
        if rebuild:
            make_venv(python, version, venv)
        # Until the end the stamp matches nothing, so that a stopped start is taken up again in this `.venv`.
        write_stamp(venv, {**wanted, "inputs": "unfinished", "extras": recorded_extras(found)})
        install(root, python, together)
        write_stamp(venv, wanted)
        say("ready after %.1f s" % (time.time() - start))


# The command line


def command_line(root: Path, arguments: Sequence[str]) -> List[str]:
    """Return what to run in `.venv` for these arguments."""
    programs = root / ".venv" / "bin"
    if arguments[0] == "test":
        return [str(programs / "python"), "-m", "pytest", *DEFAULT_TESTS, *arguments[1:]]
    return [str(programs / "alignflow"), *arguments]


def main(arguments: Sequence[str]) -> int:
    """Set up, then become the asked-for command; return an exit code where there is none to become."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip() + "\n\nOnce set up, `.venv/bin/alignflow --help` lists alignflow's own commands.")
        return 0
    installs_only = arguments[0] == "install"
    try:
        if os.name != "posix":
            raise SetupError("alignflow runs on Linux and macOS; on Windows, start it inside WSL.")
        if installs_only and not set(arguments[1:]) <= EXTRAS:
            raise SetupError("install takes extras only: %s" % ", ".join(sorted(EXTRAS)))
        ensure(ROOT, sys.version_info[:2], ["dev", *arguments[1:]] if installs_only else ["dev"])
    except SetupError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("\nstopped; the next start goes on from here")
        return 130
    if installs_only:
        return 0
    command = command_line(ROOT, arguments)
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
