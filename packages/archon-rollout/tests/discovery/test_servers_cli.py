"""``archon servers``: no server, living and dead ones, an unreadable registry, and the trainer's opinion."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from archon_core.cli.main import main
from archon_core.serving.record import ServerRecord, ServerState
from archon_core.serving.wire import to_data
from archon_rollout import servers_cli
from archon_rollout.pool.status_file import MemberStatus, TrainerStatus
from archon_rollout.registries.folder import FolderRegistry

DEAD = ServerRecord("127.0.0.1:1", "dead", "served", version=3)


class Server(ThreadingHTTPServer):
    """Answers ``GET /state`` of a served model, with the token ``mine``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        address = f"127.0.0.1:{self.server_address[1]}"
        self.record = ServerRecord(address, "live0123456789", "served", version=4, started_at=time.time() - 300)
        self.state = ServerState(self.record.incarnation, 4, False, running=2, tokens_per_second=123.4)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Bearer mine"
        error = {"error": {"message": "found no token"}}
        answer = {**self.server.state.as_data(), "record": self.server.record.as_data()} if known else error
        body = json.dumps(answer).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("ARCHON_SERVER_TOKEN", "mine")
    monkeypatch.setenv("COLUMNS", "140")
    (tmp_path / "e" / "t" / "servers").mkdir(parents=True)
    return tmp_path / "e" / "t"


@pytest.fixture
def show(run: Path, capsys):
    def show(*options: str, where: Path = run) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["servers", str(where), *options])
        return ended.value.code or 0, *capsys.readouterr()

    return show


def announce(run: Path, *records: ServerRecord) -> None:
    registry = FolderRegistry(run / "servers" / "announced")
    for number, record in enumerate(records):
        registry.announce(f"s{number}", record, ttl=60)


def write_status(run: Path, *members: MemberStatus, age: float = 0.0, **changes) -> None:
    status = TrainerStatus(time.time() - age, 5.0, 4, 2, members=members, **changes)
    (run / "servers" / "status.json").write_text(json.dumps(to_data(status)), encoding="utf-8")


def test_a_run_without_servers_says_how_to_start_one(show, run: Path) -> None:
    code, out, _ = show()
    assert code == 1
    assert "registry folder: lists no server; start one with: archon serve --model PATH --announce RUN" in out
    assert "trainer: no status in the run folder" in out
    assert json.loads(show("--json")[1]) == {
        "registry": "folder",
        "run": "e/t",
        "registry_error": "",
        "trainer": None,
        "servers": [],
        "sampling": None,
    }
    code, _, err = show(where=run / "no-such-run")
    assert code == 2
    assert "found no such file or folder" in err
    code, _, err = show(where=run.parent)
    assert code == 2
    assert "found a folder without config.yaml or servers" in err


def test_living_and_dead_servers_have_a_row_each_with_the_trainers_opinion(show, run: Path, server: Server) -> None:
    announce(run, server.record, DEAD)
    live = server.record
    write_status(
        run,
        MemberStatus(live.address, live.incarnation, "served", "active", 10.0, 4),
        MemberStatus(DEAD.address, "dead", "served", "suspect", 1.0, 3, 1, "no answer in 10 s"),
        MemberStatus(live.address, "before", "served", "out", 9.0, 3, 0, "it was restarted", False),
    )
    code, out, _ = show()
    assert code == 0
    assert "run e/t, registry folder: 3 servers\ntrainer: version 4, topology 2\n" in out
    rows = {line.split()[0] + line.split()[-1]: line.split() for line in out.splitlines() if "127.0.0.1" in line}
    assert rows[f"{live.address}live0123"][1:-1] == ["served", "active", "generating", "4", "123", "2", "5", "min"]
    assert rows["127.0.0.1:1dead"][1:-1] == ["served", "suspect", "silent", "3", "-", "-", "-"]
    assert rows[f"{live.address}before"][1:-1] == ["served", "out", "silent", "3", "-", "-", "-"]
    assert "error: no answer in 10 s" in out
    assert "error: it was restarted" in out
    first = json.loads(show("--json")[1])["servers"]
    assert {row["incarnation"]: row["tokens_per_second"] for row in first} == {
        live.incarnation: 123.4,
        "dead": None,
        "before": None,
    }


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"paused": True}, "paused"),
        ({"version": -1}, "no weights"),
        ({"updating": 5}, "updating"),
        ({"running": 0}, "idle"),
    ],
    ids=str,
)
def test_what_a_server_does_is_shown(show, run: Path, server: Server, changes, shown: str) -> None:
    announce(run, server.record)
    server.state = replace(server.state, **changes)
    assert json.loads(show("--json")[1])["servers"][0]["server"] == shown


def test_dead_and_foreign_servers_show_the_error_of_the_query(show, run: Path, server: Server, monkeypatch) -> None:
    announce(run, DEAD, replace(server.record, incarnation="earlier"), replace(DEAD, kind="other", incarnation="x"))
    errors = {row["incarnation"]: row["error"] for row in json.loads(show("--json")[1])["servers"]}
    assert "cannot connect" in errors["dead"]
    assert errors["earlier"] == f"another incarnation answers there: {server.record.incarnation}"
    assert "no installed plugin provides it" in errors["x"]
    monkeypatch.setenv("ARCHON_SERVER_TOKEN", "other")
    code, out, _ = show()
    assert code == 1
    assert "answered 401: found no token" in out


def test_addresses_of_the_configuration_are_queried_too(show, run: Path, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    places = f"[{server.record.address}, 127.0.0.1:1]"
    file.write_text(f"rollout: {{backend: 'served:d1', addresses: {places}}}\ncluster: {{fileroot: {tmp_path}}}")
    for kind in ("static", "folder"):
        found = json.loads(show(f"cluster.name_resolve.type={kind}", "--json", where=file)[1])["servers"]
        assert [(row["incarnation"], row["server"]) for row in found] == [
            ("", "silent"),
            (server.record.incarnation, "generating"),
        ]


def test_an_unreadable_registry_leaves_what_the_trainer_knows(show, run: Path, server: Server) -> None:
    (run / "servers" / "announced").write_text("in the way")
    live = server.record
    write_status(
        run,
        MemberStatus(live.address, live.incarnation, "served", "active", 10.0, 4, started_at=live.started_at),
        registry_error="stale file handle",
    )
    code, out, err = show()
    assert code == 0
    assert "registry folder: cannot be read; listed below are the servers known to the trainer" in out
    assert "it cannot read the registry: stale file handle" in out
    assert [word for word in out.split() if word in ("active", "5", "min")] == ["active", "5", "min"]
    assert "cannot list it" in err


def test_an_old_status_says_how_old_it_is(show, run: Path) -> None:
    announce(run, DEAD)
    gone = MemberStatus("127.0.0.1:2", "gone", "served", "active", 10.0, 4)
    write_status(run, gone, age=600.0)
    assert "trainer: silent for 10 min; the pool's states below are old" in show()[1]
    write_status(run, gone, age=8000.0, ended=True)
    out = show()[1]
    assert "trainer: ended 2.2 h ago, with version 4" in out
    assert "127.0.0.1:2" not in out, "a server of an ended trainer that no registry lists"
    (run / "servers" / "status.json").write_text("{")
    assert "cannot read the trainer's status" in show()[2]


def test_watching_looks_again_until_ctrl_c(show, run: Path, server: Server, monkeypatch) -> None:
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        announce(run, server.record)
        if len(looks) > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(servers_cli.time, "sleep", sleep)
    code, out, _ = show("--watch", "--json", "--interval", "0.5")
    assert code == 0
    assert [len(json.loads(line)["servers"]) for line in out.splitlines()] == [0, 1]
    assert looks == [0.5, 0.5]
    assert "found 0; allowed are numbers from 0.1" in show("--watch", "--interval", "0")[2]


def test_a_server_that_cannot_join_shows_why_and_when_it_tries_again(show, run: Path, server: Server) -> None:
    announce(run, server.record, DEAD)
    why = "prepare: answered 409: found another architecture"
    out = MemberStatus(DEAD.address, "dead", "served", "out", 5.0, 3, reason=why, refusals=3, retry_seconds=118.4)
    name = server.record.incarnation
    joining = MemberStatus(server.record.address, name, "served", "joining", 1.0, 0, refusals=1, refused=why)
    write_status(run, out, joining)
    text = show()[1]
    assert text.count(f"error: {why}") == 2
    assert "3 attempts to join failed; may join again in 118 s" in text
    assert "1 attempt to join failed; the next one is due" in text
    rows = {row["incarnation"]: row for row in json.loads(show("--json")[1])["servers"]}
    assert (rows["dead"]["refusals"], rows["dead"]["retry_seconds"]) == (3, 118.4)
    write_status(run, MemberStatus(DEAD.address, "dead", "served", "out", 5.0, 3, reason="killed", retry_seconds=0.0))
    assert "error: killed\n    may join again\n" in show()[1]
