"""The trainer's side of a collector that does not answer."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from archon_rl.trainer import collector_link
from archon_rl.trainer.collector_link import CollectorLink, CollectorLostError


def start(monkeypatch, tmp_path, *, answers: int) -> CollectorLink:
    """A link to a process that answers ``answers`` messages, and then blocks."""
    program = (
        "import json, socket, sys, time; from archon_rl.collector.messages import packed, receive; "
        "channel = socket.socket(fileno=json.loads(sys.argv[1])['descriptor']); "
        f"[(receive(channel), channel.sendall(packed({{'ok': None}}))) for _ in range({answers})]; time.sleep(600)"
    )
    popen = SimpleNamespace(**vars(subprocess))
    popen.Popen = lambda command, **options: subprocess.Popen([sys.executable, "-c", program, command[3]], **options)
    monkeypatch.setattr(collector_link, "subprocess", popen)
    return CollectorLink({}, tmp_path / "collector.log")


def test_a_start_that_takes_too_long_and_a_loop_that_is_blocked_have_different_explanations(monkeypatch, tmp_path):
    monkeypatch.setattr(collector_link, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(collector_link, "START_SECONDS", 0.2)
    with pytest.raises(CollectorLostError, match=r"not ready within 0\.2 s; do the data or imports of your modules"):
        start(monkeypatch, tmp_path, answers=0)
    monkeypatch.setattr(collector_link, "START_SECONDS", 60)
    monkeypatch.setattr(collector_link, "CALL_SECONDS", 0.2)
    link = start(monkeypatch, tmp_path, answers=1)
    try:
        with pytest.raises(CollectorLostError, match=r"gave no answer within 0\.2 s; does a workflow block the event"):
            link.state()
    finally:
        link.close()
