"""What a code fingerprint feels, and what it does not."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment_core import fingerprint as room
from alignment_core.failures import HostError

ROOT = Path(__file__).parents[1]

BASE = {
    "losses.py": '''"""Room."""
import torch
EPSILON = 1e-6
UNUSED = 3

def scale(x):
    """Times two."""
    # a reason
    return 2 * x + EPSILON

def other(x):
    return x
''',
    "stages/demo.py": """
from pkg_losses import scale

def run(config):
    return scale(config)
""",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of two modules that stands in for alignment_core."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "templates").mkdir()
    for folder in (tmp_path, tmp_path / "stages"):
        (folder / "__init__.py").write_text("")
    for name, text in BASE.items():
        (tmp_path / name).write_text(text.replace("pkg_losses", "alignment_core.losses"))
    monkeypatch.setattr(room, "ROOT", tmp_path)
    yield tmp_path
    forget()


def forget() -> None:
    """Empty every cache of the room."""
    for cached in (room.fingerprint, room._snapshot, room._source, room.read_module, room._template_digests):
        cached.cache_clear()


def digest(package: Path) -> dict[str, str]:
    """The fingerprint, read afresh."""
    forget()
    return room.fingerprint("alignment_core.stages.demo:run").definitions


def edit(package: Path, name: str, old: str, new: str) -> None:
    """Replace a text that must be there."""
    text = (package / name).read_text()
    assert old in text
    (package / name).write_text(text.replace(old, new))


def test_covers_what_is_reached_and_nothing_else(package: Path) -> None:
    assert set(digest(package)) == {
        "alignment_core.stages.demo.run",
        "alignment_core.losses.scale",
        "alignment_core.losses.EPSILON",
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a reason", "# another reason"),
        ('"""Times two."""', '"""Twice."""'),
        ("return 2 * x + EPSILON", "return (2 * x\n            + EPSILON)"),
        ("UNUSED = 3", "UNUSED = 4"),
        ("def other(x):\n    return x", "def other(x):\n    return -x"),
        ("def scale", "def inserted(): pass\n\ndef scale"),
    ],
)
def test_does_not_feel(package: Path, old: str, new: str) -> None:
    before = digest(package)
    edit(package, "losses.py", old, new)
    assert digest(package) == before


@pytest.mark.parametrize(
    ("old", "new", "felt"),
    [
        ("return 2 * x", "return 3 * x", "alignment_core.losses.scale"),
        ("EPSILON = 1e-6", "EPSILON = 1e-5", "alignment_core.losses.EPSILON"),
    ],
)
def test_feels(package: Path, old: str, new: str, felt: str) -> None:
    before = digest(package)
    edit(package, "losses.py", old, new)
    after = digest(package)
    assert {name for name in before if before[name] != after[name]} == {felt}


@pytest.mark.parametrize(
    ("header", "other"),
    [
        ("from math import sqrt", "from math import cbrt as sqrt"),
        ("import numpy as np", "import torch as np"),
        (
            "from alignment_core.losses import scale as a, other as b",
            "from alignment_core.losses import other as a, scale as b",
        ),
    ],
)
def test_feels_what_a_name_stands_for(package: Path, header: str, other: str) -> None:
    body = "\ndef run(config):\n    return a(b(config)) if 'as b' else (sqrt(config), np.exp(config))\n"
    unbound = "" if " as a" in header else "a = b = abs\n"
    (package / "stages" / "demo.py").write_text(f"{header}\n{unbound}{body}")
    before = digest(package)
    edit(package, "stages/demo.py", header, other)
    after = digest(package)
    assert before.keys() == after.keys()
    run = "alignment_core.stages.demo.run"
    assert {name for name in before if before[name] != after[name]} == {run}


def test_feels_a_loop_that_fills_a_table(package: Path) -> None:
    (package / "stages" / "demo.py").write_text(
        "TABLE = {}\nfor name in ('a', 'b'):\n    TABLE[name] = 1\n\ndef run(config):\n    return TABLE\n"
    )
    before = digest(package)
    edit(package, "stages/demo.py", "TABLE[name] = 1", "TABLE[name] = 2")
    assert digest(package) != before


def test_follows_imports_inside_functions_and_module_attributes(package: Path) -> None:
    (package / "stages" / "demo.py").write_text(
        "def run(config):\n    from alignment_core import losses\n    return losses.other(config)\n"
    )
    assert set(digest(package)) == {"alignment_core.stages.demo.run", "alignment_core.losses.other"}


def test_feels_the_content_of_a_template_it_names(package: Path) -> None:
    (package / "templates" / "page.j2").write_text("one")
    (package / "stages" / "demo.py").write_text("def run(config):\n    return 'page.j2'\n")
    before = digest(package)
    (package / "templates" / "page.j2").write_text("two")
    assert digest(package) != before


def test_a_missing_name_is_an_error(package: Path) -> None:
    (package / "stages" / "demo.py").write_text("from alignment_core.losses import gone\ndef run(c):\n    gone(c)\n")
    with pytest.raises(ValueError, match="defines no 'gone'"):
        digest(package)


def test_versions_of_reached_libraries_only() -> None:
    assert "torch" in room.fingerprint("alignment_core.stages.sft:run").versions
    assert "torch" not in room.fingerprint("alignment_core.stages.filter:run").versions


def test_every_stage_of_the_package_has_a_fingerprint_without_importing_it() -> None:
    stages = [
        path.stem for path in (Path(room.__file__).parent / "stages").glob("*.py") if "CONFIG =" in path.read_text()
    ]
    assert len(stages) >= 10
    code = (
        "import sys\nfrom alignment_core.fingerprint import fingerprint\n"
        f"for stage in {stages!r}: assert fingerprint(f'alignment_core.stages.{{stage}}:run').definitions\n"
        "print('torch' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert shown.stdout.strip() == "False"


def test_code_edited_under_a_running_command_is_refused_where_it_is_felt(package: Path) -> None:
    definitions = digest(package)
    edit(package, "losses.py", "def other(x):\n    return x", "def other(x):\n    return -x")
    edit(package, "losses.py", "# a reason", "# another reason")
    room.require_unedited(definitions)
    edit(package, "losses.py", "return 2 * x", "return 3 * x")
    with pytest.raises(HostError, match=r"alignment_core\.losses\.scale was edited while this command runs"):
        room.require_unedited(definitions)


def test_a_stage_first_asked_for_after_an_edit_has_the_code_that_the_process_started_with(package: Path) -> None:
    before = digest(package)
    forget()
    room.read_module("alignment_core.losses")
    edit(package, "stages/demo.py", "return scale(config)", "return scale(config) + 1")
    assert room.fingerprint("alignment_core.stages.demo:run").definitions == before
    with pytest.raises(HostError, match=r"stages\.demo\.run was edited"):
        room.require_unedited(before)


def test_a_grader_edit_retrains_no_sft_run_but_every_policy_gradient_run() -> None:
    grading = "alignment_core.grading.compare"
    assert grading not in room.fingerprint("alignment_core.stages.sft:run").definitions
    assert grading in room.fingerprint("alignment_core.stages.grpo:run").definitions
    assert grading in room.fingerprint("alignment_core.stages.grade:run").definitions


def other_interpreter() -> str:
    """A real Python of the other supported version; skips loudly where there is none."""
    wanted = "3.12" if sys.version_info[:2] == (3, 11) else "3.11"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{wanted}"), *map(str, sorted(pyenv.glob(f"{wanted}*/bin/python{wanted}")))]
    for python in filter(None, found):
        asked = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == wanted:
            return python
    pytest.skip(f"no Python {wanted} on PATH or under {pyenv}: whether both give the same keys is not tested")


TRICKY = """
def run(config):
    name, width = "x\u00e9\U0001fae8", 3
    nested = f"{name!r:>{width}}" "and" f" {config['a']:.{width}f}" "{braces}"
    if (found := nested) and not (yield):
        match found:
            case {"k": [1, *rest], **others} if rest:
                return lambda *, a=1e400, b=-0.0: (a, b, 10**40, 0x10, 1_000, rest, others)
    with open(name) as one, open(name) as two:
        return [*one, *two, b"\\xff", ..., None, 1j, """
TRICKY += '"""text""", rb"raw"]\n'


def test_both_python_versions_give_every_stage_the_same_fingerprint(package: Path) -> None:
    """The other interpreter has none of our packages: the room needs the standard library alone."""
    (package / "stages" / "demo.py").write_text(TRICKY)
    stages = [path.stem for path in (ROOT / "alignment_core" / "stages").glob("*.py") if "CONFIG =" in path.read_text()]
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom alignment_core import fingerprint as room\n"
        f"shown = [room.fingerprint(f'alignment_core.stages.{{stage}}:run').definitions for stage in {stages!r}]\n"
        "for cached in (room.fingerprint, room._snapshot, room._source, room.read_module): cached.cache_clear()\n"
        f"room.ROOT = Path({str(package)!r})\n"
        "print(json.dumps([shown, room.fingerprint('alignment_core.stages.demo:run').definitions]))"
    )
    shown = [
        subprocess.run(
            [python, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for python in (sys.executable, other_interpreter())
    ]
    assert len(stages) >= 10
    assert shown[0] == shown[1]
