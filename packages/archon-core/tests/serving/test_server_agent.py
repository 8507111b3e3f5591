"""The agent that starts a server on any machine, announces it, and ends it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from archon_core.contracts.serving import ServerDriverSpec
from archon_core.plugins import build_registry
from archon_core.plugins.discovery import discover
from archon_core.serving import server_agent
from archon_core.serving.record import ServerLaunch, ServerRecord
from archon_core.serving.server_agent import ServerAgent

SERVE = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()} {os.environ[\"A\"]}'); time.sleep(60)"


class Driver:
    """Its server writes its process and a variable into a file."""

    def __init__(self, config: Any, *, options: Any, token: str) -> None:
        assert token

    def launch(self, model: str, *, host: str, port: int, index: int, **rest: Any) -> ServerLaunch:
        self.file = Path(model).parent / f"server-{index}"
        return ServerLaunch((sys.executable, "-S", "-c", SERVE, str(self.file)))

    def ready(self, address: str, *, timeout: float) -> ServerRecord | None:
        return (
            ServerRecord(address, "start", "toy")
            if self.file.exists() and self.file.read_text(encoding="utf-8")
            else None
        )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with a kind of servers for tests."""
    plugins = build_registry(discover(), {})
    plugins.add(ServerDriverSpec(name="toy", target="toy_server_driver:Driver"))
    monkeypatch.setitem(sys.modules, "toy_server_driver", SimpleNamespace(Driver=Driver))
    monkeypatch.setattr(server_agent, "registry", lambda: plugins)
    options = {"experiment_name": "e", "cluster": {"fileroot": str(tmp_path)}, "rollout": {"backend": "toy:d2"}}
    (tmp_path / "run.yaml").write_text(json.dumps(options), encoding="utf-8")
    (tmp_path / "servers" / "model").mkdir(parents=True)
    return tmp_path


def entries(run: Path) -> list[Path]:
    return list(run.glob("e/trial0/servers/announced/*.server.json"))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def agent(run: Path, has_ended: Any) -> ServerAgent:
    return ServerAgent(
        str(run / "run.yaml"), [], str(run), 1, host="127.0.0.1", environment={"A": "b"}, has_run_ended=has_ended
    )


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_a_server_is_started_announced_and_ended_with_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def has_ended() -> bool:
        seen.extend(json.loads(path.read_text(encoding="utf-8")) for path in entries(run)[: 1 - len(seen)])
        return bool(seen)

    hints = run / "servers" / "model" / "archon.json"
    writer = threading.Timer(0.1, lambda: hints.write_text(json.dumps({"dtype": "float32", "model_spec": ""})))
    writer.start()  # as the trainer does when it has started
    assert agent(run, has_ended).run() == 0
    assert "127.0.0.1:" in json.dumps(seen)
    assert not entries(run), "withdrawn"
    pid, variable = (run / "servers" / "server-1").read_text().split()
    assert variable == "b"
    deadline = time.monotonic() + 20
    while alive(int(pid)):
        assert time.monotonic() < deadline, "the server goes on"
        time.sleep(0.02)
    assert int(pid) != os.getpid()


def test_a_run_that_ends_before_its_model_is_known_starts_no_server(run: Path) -> None:
    assert agent(run, lambda: True).run() == 0
    assert not entries(run)
    assert not list((run / "servers").glob("server-*"))
