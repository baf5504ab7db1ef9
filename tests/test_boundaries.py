"""The dependency arrow: flows -> tasks -> alignment_core, and never back."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.pools import GPU_STAGES

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "alignment_core": {"prefect", "mlflow", "tasks", "flows"},
    "tasks": {"flows"},
    "flows": {"mlflow", "torch", "transformers"},
}
LIGHT = ["config", "records", "store", "stage", "fingerprint", "seeding", "runs"]
"""Rooms the parent of a study imports: no torch behind any of them."""
STAGES = [
    path for path in (ROOT / "alignment_core" / "stages").glob("[!_]*.py") if path.stem not in {"artifacts", "splits"}
]


def imported_packages(path: Path) -> set[str]:
    """Top-level packages a file imports anywhere, inside functions too."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages.add(node.module.split(".")[0])
    return packages


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_imports_only_run_downward(floor: str) -> None:
    files = list((ROOT / floor).rglob("*.py"))
    assert files
    wrong = {str(f): imported_packages(f) & FORBIDDEN[floor] for f in files if imported_packages(f) & FORBIDDEN[floor]}
    assert not wrong


def test_only_tracking_imports_mlflow() -> None:
    users = [path.name for path in (ROOT / "tasks").rglob("*.py") if "mlflow" in imported_packages(path)]
    assert users == ["tracking.py"]


def blind_spots(path: Path) -> list[str]:
    """What a file does that `alignment_core.fingerprint`, which follows names, would not see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or any(alias.name == "*" for alias in node.names)):
            found.append(f"line {node.lineno}: a relative or star import")
        if isinstance(node, ast.Global):
            found.append(f"line {node.lineno}: a global statement")
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in {"globals", "__subclasses__", "import_module", "__import__"} and path.name not in DYNAMIC:
                found.append(f"line {node.lineno}: {name}")
    for statement in tree.body:
        harmless = isinstance(statement, ast.If) and ast.unparse(statement.test) in HARMLESS
        if isinstance(statement, ast.If | ast.Try) and not harmless:
            found.append(f"line {statement.lineno}: a definition or import under a condition")
    return found


HARMLESS = {"TYPE_CHECKING", "__name__ == '__main__'"}
DYNAMIC = {"__init__.py", "vllm_engine.py", "stage.py", "stage_process.py", "followers.py", "acceptance.py"}
"""Rooms that import by name on purpose: the lazy exports, the machinery around stages, and vllm where it is there."""


def test_the_core_does_nothing_that_a_fingerprint_cannot_see() -> None:
    found = {path.name: spots for path in (ROOT / "alignment_core").rglob("*.py") if (spots := blind_spots(path))}
    assert not found


PICKLING = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def unsafe_loads(path: Path) -> list[str]:
    """Where a file would run code that a file of data holds: pickles, in whichever dress."""
    found = [f"imports {name}" for name in imported_packages(path) & PICKLING]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called.endswith("torch.load") and given.get("weights_only") != "True":
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if given.get("allow_pickle", "False") != "False" or called.endswith(("read_pickle", "torch.save")):
            found.append(f"line {node.lineno}: {called}")
    return found


def test_nothing_is_ever_unpickled(tmp_path: Path) -> None:
    found = {
        str(path): bad for floor in FORBIDDEN for path in (ROOT / floor).rglob("*.py") if (bad := unsafe_loads(path))
    }
    assert not found
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import torch, pickle\ntorch.load(f)\ntorch.load(f, weights_only=False)\nnp.load(f, allow_pickle=True)\n"
    )
    assert len(unsafe_loads(bad)) == 4
    bad.write_text("import torch\ntorch.load(f, weights_only=True)\n")
    assert unsafe_loads(bad) == []


def test_the_parent_of_a_study_imports_no_torch() -> None:
    modules = [f"alignment_core.{name}" for name in LIGHT] + ["flows.study", "flows.settings", "flows.cli"]
    modules += [f"alignment_core.stages.{path.stem}" for path in STAGES if path.stem not in GPU_STAGES]
    code = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print([name for name in ('torch', 'transformers', 'mlflow', 'datasets') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"
