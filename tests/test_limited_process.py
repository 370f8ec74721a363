"""The limits of `run_limited` end a process that exceeds them."""

import signal

import pytest
from limited_process import MEGABYTE, assert_refused, run_limited


def test_a_run_within_its_limits_reports_output_and_memory():
    run = run_limited("print(args[0] + 1); block = b'x' * 200_000_000; del block", 41)
    assert (run.status, run.output, run.error) == (0, "42\n", "")
    assert 195 * MEGABYTE < run.peak < 250 * MEGABYTE


def test_an_allocation_beyond_the_limit_fails():
    run = run_limited("bytearray(200_000_000)", memory=100 * MEGABYTE)
    assert run.status == 1 and "MemoryError" in run.output
    with pytest.raises(AssertionError):
        assert_refused(run)


@pytest.mark.parametrize(
    "code, ended_by",
    [("while True: pass", signal.SIGXCPU), ("import os; os.kill(os.getpid(), 11)", signal.SIGSEGV)],
)
def test_a_process_without_end_and_a_crash_are_reported_as_signals(code, ended_by):
    assert run_limited(code, seconds=0.5).status == -ended_by


def test_errors_with_one_message_are_told_from_others():
    refused = run_limited("raise ValueError('`path` should be readable. Received: x.pth')")
    assert refused.error == "ValueError: `path` should be readable. Received: x.pth"
    assert_refused(refused, "x.pth")
    with pytest.raises(AssertionError):
        assert_refused(run_limited("{}['block']"))
