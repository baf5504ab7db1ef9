"""The set-up command: which interpreter it takes, when it installs, what it installs."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flows import bootstrap

ROOT = Path(__file__).resolve().parent.parent
OWN = sys.version_info[:2]
OTHER = next(version for version in bootstrap.SUPPORTED if version != OWN)


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout as bootstrap sees it, on a machine without a GPU."""
    monkeypatch.setattr(bootstrap, "sees_gpu", lambda: False)
    root = tmp_path / "checkout"
    (root / ".ci").mkdir(parents=True)
    (root / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    (root / ".ci" / "constraints.txt").write_text("torch==2.13.0\nuv==0.13.8 ; x\n", encoding="utf-8")
    (root / ".ci" / "constraints-gpu.txt").write_text("torch==2.11.0\nuv==0.13.8\n", encoding="utf-8")
    return root


class Recorder:
    """Stands in for `step`: notes the labels, and does what the venv step would leave behind."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.labels: list[str] = []
        self.commands: list[list[str]] = []
        self.fails_at = "nothing"

    def __call__(self, label: str, command: list[str], variables: dict[str, str] | None = None) -> None:
        self.labels.append(label.split(",")[0])
        self.commands.append(list(command))
        if label.startswith(self.fails_at):
            raise bootstrap.SetupError("no")
        if label.startswith("virtual"):
            script(self.root / ".venv" / "bin" / "python", "exit 1\n")


@pytest.fixture
def steps(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(checkout)
    monkeypatch.setattr(bootstrap, "step", recorder)
    monkeypatch.setattr(bootstrap, "fetch_cpu_torch", lambda *arguments: True)
    monkeypatch.setattr(bootstrap, "require_venv", lambda *arguments: None)
    monkeypatch.setattr(bootstrap, "environment", lambda *arguments: {})
    return recorder


# which interpreter


def test_it_parses_on_python_3_6_and_needs_only_the_standard_library() -> None:
    tree = ast.parse((ROOT / "flows" / "bootstrap.py").read_text(encoding="utf-8"), feature_version=(3, 6))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_the_package_it_lies_in_imports_nothing() -> None:
    tree = ast.parse((ROOT / "flows" / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_a_supported_interpreter_is_taken_as_it_is() -> None:
    assert bootstrap.choose_python(OWN, "") == (sys.executable, OWN)


def test_another_interpreter_is_found_past_one_that_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"python{OWN[0]}.{OWN[1]}"
    script(tmp_path / "shims" / name, "echo 'command not found' >&2; exit 127\n")
    lying = script(tmp_path / "lying" / name, "echo 2 7\n")
    real = script(tmp_path / "real" / name, f'exec "{sys.executable}" "$@"\n')
    path = os.pathsep.join(str(folder) for folder in (tmp_path / "shims", lying.parent, "", real.parent))
    assert bootstrap.choose_python((3, 13), path) == (str(real), OWN)
    assert f"this is 3.13: using {real}" in capsys.readouterr().err


def test_no_interpreter_says_what_was_found_and_what_to_do() -> None:
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.choose_python((3, 14), "")
    text = str(caught.value)
    assert "needs Python 3.11 or 3.12" in text
    assert f"This is Python 3.14 ({sys.executable})" in text
    assert "apt-get install" in text


def unsupported_interpreters() -> list[str]:
    """Interpreters beside this one (as version managers lay them out) and on PATH that are too old or too new."""
    beside = [str(path) for path in Path(sys.base_prefix).parent.glob("*/bin/python3")]
    on_path = [str(Path(part) / "python3") for part in os.environ["PATH"].split(os.pathsep) if part]
    versions = {python: bootstrap.version_of(python) for python in beside + on_path}
    return [python for python, version in versions.items() if version and version not in bootstrap.SUPPORTED]


def test_unsupported_interpreters_exit_with_the_message(tmp_path: Path) -> None:
    pythons = [python for python in unsupported_interpreters() if (bootstrap.version_of(python) or (0, 0)) >= (3, 6)]
    if not pythons:
        pytest.skip("no other Python 3 runs on this machine")
    (tmp_path / "flows").mkdir()
    shutil.copy(ROOT / "flows" / "bootstrap.py", tmp_path / "flows")
    for python in pythons:
        command = [python, "-m", "flows.bootstrap", "run", "tiny"]
        done = subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr.startswith("alignflow needs Python 3.11 or 3.12. This is Python 3.")


def test_a_python_without_venv_gets_the_remedy(tmp_path: Path) -> None:
    python = script(tmp_path / "python3.11", "exit 1\n")
    with pytest.raises(bootstrap.SetupError, match=r"apt-get install python3\.11-venv"):
        bootstrap.require_venv(str(python), (3, 11))
    bootstrap.require_venv(sys.executable, OWN)


# whether anything is to be done


def test_a_first_start_installs_and_a_second_does_nothing(checkout: Path, steps: Recorder) -> None:
    bootstrap.ensure(checkout, OWN, ["dev"])
    assert steps.labels == ["virtual environment", "uv", "torch 2.13.0", "alignflow and what it needs"]
    assert steps.commands[-1][-1] == f"{checkout}[dev]"
    assert str(checkout / ".ci" / "constraints.txt") in steps.commands[-1]
    bootstrap.ensure(checkout, OWN, ["dev"])
    assert len(steps.labels) == 4


@pytest.mark.parametrize("name", ["pyproject.toml", ".ci/constraints.txt"])
def test_changed_requirements_update_in_place(checkout: Path, steps: Recorder, name: str) -> None:
    bootstrap.ensure(checkout, OWN, ["dev"])
    steps.labels.clear()
    (checkout / name).write_text("torch==2.12.0\n", encoding="utf-8")
    bootstrap.ensure(checkout, OWN, ["dev"])
    assert steps.labels[-1] == "alignflow and what it needs"
    assert "virtual environment" not in steps.labels


def test_another_supported_interpreter_makes_it_anew(checkout: Path, steps: Recorder) -> None:
    bootstrap.ensure(checkout, OWN, ["dev"])
    steps.labels.clear()
    bootstrap.ensure(checkout, OTHER, ["dev"])
    assert steps.labels[0] == "virtual environment"


def test_a_moved_checkout_and_a_new_gpu_make_it_anew(checkout: Path) -> None:
    stamp = bootstrap.wanted_stamp(checkout, OWN, ["dev"])
    assert not bootstrap.must_rebuild(stamp, stamp)
    assert bootstrap.must_rebuild({**stamp, "root": "/elsewhere"}, stamp)
    assert bootstrap.must_rebuild({**stamp, "gpu": True}, stamp)
    assert bootstrap.must_rebuild({}, stamp)


def test_an_unsupported_interpreter_is_content_with_what_is_installed(checkout: Path, steps: Recorder) -> None:
    bootstrap.ensure(checkout, OWN, ["dev"])
    steps.labels.clear()
    bootstrap.ensure(checkout, (3, 13), ["dev"])
    bootstrap.ensure(checkout, (3, 9), ["dev"])
    assert steps.labels == []


def test_extras_are_added_and_kept(checkout: Path, steps: Recorder) -> None:
    bootstrap.ensure(checkout, OWN, ["dev"])
    bootstrap.ensure(checkout, OWN, ["dev", "gpu"])
    assert steps.commands[-1][-1] == f"{checkout}[dev,gpu]"
    assert str(checkout / ".ci" / "constraints-gpu.txt") in steps.commands[-1]
    before = len(steps.labels)
    bootstrap.ensure(checkout, OWN, ["dev"])
    assert len(steps.labels) == before


def test_a_failed_start_is_taken_up_again_in_the_same_venv(checkout: Path, steps: Recorder) -> None:
    steps.fails_at = "alignflow"
    with pytest.raises(bootstrap.SetupError):
        bootstrap.ensure(checkout, OWN, ["dev", "gpu"])
    steps.fails_at = "nothing"
    steps.labels.clear()
    bootstrap.ensure(checkout, OWN, ["dev"])
    assert steps.labels == ["uv", "torch 2.13.0", "alignflow and what it needs"]
    assert steps.commands[-1][-1] == f"{checkout}[dev]"  # what failed is not tried again unasked


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"'])
def test_a_damaged_stamp_counts_as_none(tmp_path: Path, text: str) -> None:
    script(tmp_path / "bin" / "python", "exit 0\n")
    (tmp_path / bootstrap.STAMP_NAME).write_text(text, encoding="utf-8")
    assert bootstrap.read_stamp(tmp_path) == {}


def test_a_stamp_without_its_interpreter_counts_as_none(tmp_path: Path) -> None:
    bootstrap.write_stamp(tmp_path, {"python": "3.11"})
    assert bootstrap.read_stamp(tmp_path) == {}
    script(tmp_path / "bin" / "python", "exit 0\n")
    assert bootstrap.read_stamp(tmp_path) == {"python": "3.11"}


# installing


def test_a_failing_step_shows_the_end_of_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(bootstrap.SetupError, match=r"(?s)exit code 3.*no such package"):
        bootstrap.step("something", ["sh", "-c", "echo no such package >&2; exit 3"])
    assert capsys.readouterr().err.startswith("  something ... 0.")


def test_pip_is_asked_for_the_cpu_build_and_nothing_else(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    python = script(tmp_path / "python", f'echo "$@" > {tmp_path}/asked; touch {wheels}/torch-2.13.0+cpu-x.whl\n')
    assert bootstrap.fetch_cpu_torch(str(python), "2.13.0", wheels)
    asked = (tmp_path / "asked").read_text(encoding="utf-8").split()
    assert asked[:3] == ["-m", "pip", "download"]
    assert asked[-1] == "torch==2.13.0+cpu"  # the local version never matches the CUDA build
    assert "--no-deps" in asked


def test_a_pip_that_knows_no_cpu_build_is_believed(tmp_path: Path) -> None:
    refusing = script(tmp_path / "refusing", "exit 1\n")
    empty_handed = script(tmp_path / "empty", "exit 0\n")
    assert not bootstrap.fetch_cpu_torch(str(refusing), "2.13.0", tmp_path)
    assert not bootstrap.fetch_cpu_torch(str(empty_handed), "2.13.0", tmp_path)


def test_without_a_cpu_build_the_plain_resolution_follows(
    checkout: Path, steps: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "fetch_cpu_torch", lambda *arguments: False)
    bootstrap.ensure(checkout, OWN, ["dev"])
    assert steps.labels == ["virtual environment", "uv", "alignflow and what it needs"]
    assert "no CPU build of torch 2.13.0 at hand" in capsys.readouterr().err


@pytest.mark.parametrize("extras", [["dev"], ["dev", "gpu"]])
def test_a_gpu_or_its_extra_rules_the_cpu_build_out(
    checkout: Path, steps: Recorder, monkeypatch: pytest.MonkeyPatch, extras: list[str]
) -> None:
    monkeypatch.setattr(bootstrap, "sees_gpu", lambda: "gpu" not in extras)
    bootstrap.ensure(checkout, OWN, extras)
    assert steps.labels == ["virtual environment", "uv", "alignflow and what it needs"]


@pytest.mark.parametrize("build", ["2.13.0", "2.13.0+cpu"])
def test_an_installed_torch_is_left_alone(checkout: Path, steps: Recorder, build: str) -> None:
    (checkout / ".venv" / "lib" / "python3.11" / "site-packages" / f"torch-{build}.dist-info").mkdir(parents=True)
    bootstrap.install_cpu_torch("python", checkout / ".venv", checkout / ".ci" / "constraints.txt", ["uv"])
    assert steps.labels == []


def test_uv_is_given_the_index_that_pip_is_configured_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    silent = script(tmp_path / "silent", "exit 1\n")
    configured = script(tmp_path / "configured", "echo https://index.example/simple\n")
    assert "UV_DEFAULT_INDEX" not in bootstrap.environment(str(silent))
    assert bootstrap.environment(str(configured))["UV_DEFAULT_INDEX"] == "https://index.example/simple"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://chosen.example/simple")
    assert bootstrap.environment(str(configured))["UV_DEFAULT_INDEX"] == "https://chosen.example/simple"


# the command line


def test_arguments_reach_alignflow_or_pytest(tmp_path: Path) -> None:
    programs = tmp_path / ".venv" / "bin"
    assert bootstrap.command_line(tmp_path, ["run", "tiny", "--set", "a=1"]) == [
        str(programs / "alignflow"), "run", "tiny", "--set", "a=1",
    ]  # fmt: skip
    assert bootstrap.command_line(tmp_path, ["test", "-x"]) == [
        str(programs / "python"), "-m", "pytest", "-m", "not slow", "-x",
    ]  # fmt: skip


def test_help_installs_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "ensure", None)
    assert bootstrap.main([]) == bootstrap.main(["--help"]) == 0
    assert "python3 -m flows.bootstrap run tiny" in capsys.readouterr().out


def test_only_extras_of_the_project_are_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["optional-dependencies"]) == bootstrap.EXTRAS
    asked: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "ensure", lambda root, own, extras: asked.append(extras))
    assert bootstrap.main(["install", "nonsense"]) == 2
    assert "bench, dev, gpu" in capsys.readouterr().err
    assert bootstrap.main(["install", "bench"]) == 0
    assert asked == [["dev", "bench"]]


# what the project pins


@pytest.mark.parametrize(("name", "left_out"), [("constraints.txt", "gpu"), ("constraints-gpu.txt", "")])
def test_the_pins_keep_the_promises_of_pyproject(name: str, left_out: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra, requirements in project["optional-dependencies"].items():
        wanted += requirements if extra != left_out else []
    for requirement in map(Requirement, wanted):
        version = bootstrap.pinned(ROOT / ".ci" / name, requirement.name.lower())
        assert version is not None, f"{requirement} is not pinned in {name}"
        assert version in requirement.specifier


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-gpu.txt"])
def test_the_pins_name_no_host_and_no_folder(name: str) -> None:
    lines = (ROOT / ".ci" / name).read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if "://" in line or "@" in line or line.startswith("-")]
    assert not [line for line in lines if "/" in line.replace(f".ci/{name}", "")]
