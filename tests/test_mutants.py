"""The list of mutants is alive: each names code that is there, and (slow) each is noticed."""

import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant
from mutants_loops import LOOP_MUTANTS
from run_mutants import ROOT, mutated

TESTS = Path(__file__).parent
ALL = [*MUTANTS, *LOOP_MUTANTS]


@pytest.mark.parametrize("mutant", ALL, ids=lambda one: f"{one.room}: {one.what}")
def test_a_mutant_changes_one_place_and_names_tests(mutant: Mutant) -> None:
    source = (ROOT / "alignment_core" / f"{mutant.room}.py").read_text(encoding="utf-8")
    changed = mutated(source, mutant.old, mutant.new)
    assert changed != source
    compile(changed, mutant.room, "exec")
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8") if name else (TESTS / file).is_file()


def test_there_are_enough_and_no_two_are_the_same() -> None:
    assert len(ALL) >= 40
    assert len({(one.room, one.old, one.new) for one in ALL}) == len(ALL)
    assert len({(one.room, one.what) for one in ALL}) == len(ALL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_mutant_is_noticed() -> None:
    done = subprocess.run([sys.executable, str(TESTS / "run_mutants.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
