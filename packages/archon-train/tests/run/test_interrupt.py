"""Ctrl-C and SIGTERM: the first asks, the second interrupts, and the handlers from before come back."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import nullcontext

import pytest

from archon_core.ranks.environment import LAUNCHER_PID, RankEnvironment
from archon_train.cli import training
from archon_train.run.interrupt import StopSignal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_asks_for_the_end_of_the_run_and_says_what_happens(capfd, number, code):
    with StopSignal() as stop:
        assert not stop.requested
        assert stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.requested
    assert stop.exit_code == code
    message = capfd.readouterr().err
    assert number.name in message
    assert "stopping after this step" in message
    assert "again to stop at once" in message


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_interrupts_at_once(first):
    with StopSignal() as stop:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.exit_code == 128 + first


def test_the_handlers_from_before_come_back_even_after_an_error():
    def fail():
        with StopSignal():
            assert signal.getsignal(signal.SIGINT) not in before
            raise RuntimeError

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError):
        fail()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_program_can_ask_for_the_end_itself():
    stop = StopSignal()
    stop.request()
    assert stop.requested
    assert stop.exit_code == 130


def test_outside_the_main_thread_no_handler_is_touched_and_requests_work():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with StopSignal() as stop:
            seen.append(signal.getsignal(signal.SIGINT))
            stop.request(signal.SIGTERM)
            seen.append(stop.exit_code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, 143]


def test_the_same_signal_within_a_moment_is_one_signal_and_another_is_not():
    now = 0.0
    with StopSignal(same_within=0.5, clock=lambda: now) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        now = 0.4
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop.insisted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        now = 0.6
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.exit_code == 130


def test_the_second_signal_can_be_kept_instead_of_raised(capfd):
    with StopSignal(announce=False, raises=False) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.number, stop.insisted) == (signal.SIGTERM, False)
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.number, stop.insisted) == (signal.SIGTERM, True)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("launched", [True, False])
def test_ranks_of_archons_launchers_stop_once_however_late_a_signal_is_repeated(monkeypatch, launched):
    """Launchers kill ranks that must end at once, and clusters repeat signals."""
    monkeypatch.setattr(training, "SAME_SIGNAL_SECONDS", 0.0)
    monkeypatch.delenv(LAUNCHER_PID, raising=False)
    if launched:
        monkeypatch.setenv(LAUNCHER_PID, str(os.getppid()))
    with training._rank_stop(RankEnvironment(1, 2, 1, 2)) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with nullcontext() if launched else pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert stop.insisted != launched
