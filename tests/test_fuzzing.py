"""Mutated files of every format are read, or refused with a ValueError or OSError, within limits of memory and time."""

import sys
from runpy import run_path

import pytest
from fuzz_formats import FORMATS
from fuzz_mutations import Mutator
from fuzz_reader import MAX_BYTES, Reader
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from limited_process import MEGABYTE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux limits and measures the memory of a process")


@pytest.fixture(scope="module")
def reader():
    reader = Reader()
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def outcomes():
    """{format: outcomes of reading its files}; printed as a table at the end (pytest -s)."""
    outcomes = {}
    yield outcomes
    print("\n| format | files | refused | accepted | most memory | longest time |\n|---|---:|---:|---:|---:|---:|")
    for name, found in outcomes.items():
        refused = sum(outcome.kind == "refused" for outcome in found)
        megabytes, seconds = max(it.bytes for it in found) / MEGABYTE, max(it.seconds for it in found)
        counts = f"{len(found):,} | {refused:,} | {len(found) - refused:,}"
        print(f"| {name} | {counts} | {megabytes:.0f} MB | {seconds:.1f} s |")


def check_mutants(name, count, folder, reader):
    """Outcomes of reading `count` mutated files; a failure names the file."""
    row, outcomes = FORMATS[name], []
    path = row.make(folder)
    mutate = Mutator(path.read_bytes(), row.container)
    intact = reader.read(row.read, path, limited=False)  # imports what the format needs
    assert intact.kind == "accepted", intact

    @settings(max_examples=count, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
    @given(st.integers(0, 2**32 - 1))
    def check(seed):
        path.write_bytes(mutate(seed))
        outcome = reader.read(row.read, path)
        again = f"To make and read the file again: python tests/fuzz_formats.py {name!r} {seed} FOLDER"
        assert outcome.kind != "fault", f"{outcome.message}\n{again}"
        outcomes.append(outcome)

    check()
    return outcomes


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_are_read_or_refused(name, reader, outcomes, tmp_path):
    outcomes[name] = check_mutants(name, FORMATS[name].fast, tmp_path, reader)
    assert any(outcome.kind == "refused" for outcome in outcomes[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_thousands_of_mutated_files(name, reader, outcomes, tmp_path):
    outcomes[name] = check_mutants(name, 10 * FORMATS[name].fast, tmp_path, reader)


FAULTS = {
    "KeyError": "{}['x']",
    "MemoryError": f"bytearray({2 * MAX_BYTES})",
    "folder was changed": "open(f'{__file__}.new', 'w')",
    "": "raise ValueError",
    "ended with SIGSEGV": "import ctypes; ctypes.string_at(0)",
    "took more than": "while True: pass",
}
"""What an outcome says -> code that breaks the promise."""


def test_a_broken_promise_is_a_fault(tmp_path):
    """After each, the next file is read, in a new process if necessary."""
    reader, code = Reader(max_seconds=1), tmp_path / "code"
    for message, line in FAULTS.items():
        code.write_text(line)
        outcome = reader.read(run_path, code)
        assert outcome.kind == "fault" and message in outcome.message
        code.write_text("raise OSError('no such file')")
        assert reader.read(run_path, code).kind == "refused"
    reader.close()
