"""Apply each mutant to a copy of the core and run the tests that must notice: `python tests/run_mutants.py [WORDS]`.

WORDS choose mutants by room or description. One process per mutant, forked from one that has torch and transformers
loaded already. Exit code 1 if a mutant survives, or if the tests fail without any.
"""

import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIME_LIMIT = 240.0
"""Seconds for one mutant; one that hangs its tests is noticed too."""
SIDE_BY_SIDE = 2


def main(words: Sequence[str]) -> int:
    """Run the mutants that `words` choose, two at a time; say for each whether a test noticed."""
    from mutants import MUTANTS, Mutant
    from mutants_loops import LOOP_MUTANTS

    everything: list[Mutant] = [*MUTANTS, *LOOP_MUTANTS]
    chosen = [one for one in everything if all(word.lower() in f"{one.room} {one.what}".lower() for word in words)]
    if not chosen:
        rooms = ", ".join(sorted({one.room for one in everything}))
        print(f"no mutant has {' and '.join(map(repr, words))} in its room or description; the rooms are {rooms}")
        return 1
    load_libraries()
    started = time.monotonic()
    with copied_trees(SIDE_BY_SIDE) as trees:
        first = Trial(trees[0], sorted({name for one in chosen for name in one.tests}))
        if (code := first.wait()) != 0:
            print(f"the tests fail without any mutant (exit code {code}): mend them first")
            return 1
        survivors = 0
        for number in range(0, len(chosen), len(trees)):
            part = list(zip(chosen[number:], trees, strict=False))
            trials = [Trial(tree, one.tests, one.room, one.old, one.new) for one, tree in part]
            for (one, _), trial in zip(part, trials, strict=True):
                code = trial.wait()
                survivors += code == 0
                verdict = {0: "SURVIVED", 1: "killed"}.get(code, f"killed (exit code {code})")
                print(f"{verdict:8s}  {one.room}: {one.what}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants killed in {time.monotonic() - started:.0f} s")
    return 1 if survivors else 0


def mutated(source: str, old: str, new: str) -> str:
    """The source with its one occurrence of `old` replaced. Raises ValueError if there is not exactly one."""
    if source.count(old) != 1:
        raise ValueError(f"{old!r} occurs {source.count(old)} times: bring tests/mutants.py up to date")
    return source.replace(old, new)


def load_libraries() -> None:
    """Import what every child needs, but nothing of the core: a child must see its mutant."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import pytest
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

    assert all((pytest, torch, PreTrainedTokenizerFast, Qwen2ForCausalLM))
    assert not any(name.startswith("alignment_core") for name in sys.modules)


@contextmanager
def copied_trees(count: int) -> Iterator[list[Path]]:
    """Copies of the core and its tests, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [Path(folder) / str(number) for number in range(count)]
        for tree in trees:
            for name in ("alignment_core", "tests"):
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", tree)
        yield trees


class Trial:
    """Tests of a tree, in a process of their own, with one room broken until they are done."""

    def __init__(self, tree: Path, tests: Sequence[str], room: str = "", old: str = "", new: str = "") -> None:
        self._path = tree / "alignment_core" / f"{room}.py" if room else None
        self._source = self._path.read_text(encoding="utf-8") if self._path else ""
        if self._path is not None:
            self._path.write_text(mutated(self._source, old, new), encoding="utf-8")
        self._child = multiprocessing.get_context("fork").Process(target=_run_tests, args=(tree, list(tests)))
        self._child.start()

    def wait(self) -> int:
        """Exit code of pytest; 124 if it hung."""
        self._child.join(TIME_LIMIT)
        hung = self._child.is_alive()
        if hung:
            self._child.kill()
            self._child.join()
        if self._path is not None:
            self._path.write_text(self._source, encoding="utf-8")
        return 124 if hung else self._child.exitcode or 0


def _run_tests(tree: Path, tests: Sequence[str]) -> None:
    import pytest

    os.chdir(tree)
    # The checkout and this script's folder leave the path (not an environment inside it): only the copy may be found.
    own = {ROOT, ROOT / "tests"}
    sys.path[:] = [str(tree), *(entry for entry in sys.path if Path(entry or ".").resolve() not in own)]
    sys.dont_write_bytecode = True
    arguments = [
        *(str(tree / "tests" / name) for name in tests),
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
    ]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        code = int(pytest.main(arguments))
    import alignment_core

    if not Path(alignment_core.__file__).is_relative_to(tree):
        code = 99
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
