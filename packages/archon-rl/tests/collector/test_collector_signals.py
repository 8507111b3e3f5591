"""Signals to all processes of a job are the trainer's: its collector ignores them."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from archon_core.errors import TrainingError
from archon_rl.rewards.messages import TRAINERS_SIGNALS
from archon_rl.trainer.collector_link import CollectorLink


def test_a_collector_starts_with_the_trainers_signals_blocked(tmp_path, monkeypatch):
    blocked = []

    class Process:
        pid = 2**31 - 1  # of no process

        def __init__(self, command, **options):
            blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(CollectorLink, "_send", lambda self, message, timeout: None)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    link = CollectorLink({}, tmp_path / "log")
    assert blocked == [before | set(TRAINERS_SIGNALS)]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    link._channel.close()


def test_signals_stay_as_they_were_if_the_process_cannot_be_started(tmp_path, monkeypatch):
    def fail(command, **options):
        raise OSError("no memory")

    monkeypatch.setattr(subprocess, "Popen", fail)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(OSError, match="no memory"):
        CollectorLink({}, tmp_path / "log")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.wide
@pytest.mark.parametrize("number", TRAINERS_SIGNALS)
def test_a_collector_survives_signals(tmp_path, monkeypatch, number):
    with monkeypatch.context() as patched:
        patched.setattr(CollectorLink, "_send", lambda self, message, timeout: os.kill(self._process.pid, number))
        link = CollectorLink({}, tmp_path / "log")
    with pytest.raises(TrainingError, match=r"the collector failed \(KeyError"):  # it answers that the setup is empty
        link._send({}, 60.0)
    link.close()
