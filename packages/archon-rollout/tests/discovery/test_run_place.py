"""Where a run is: from its YAML file, or from its folder; and the token of its servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from archon_core.contracts.server_registry import NameResolveConfig
from archon_core.errors import ArchonError, ConfigError
from archon_core.serving.discovery import Discovery
from archon_core.serving.record import ServerRecord
from archon_core.serving.run_token import read_token, run_token
from archon_rollout.registries.run_place import find_run

A = ServerRecord("127.0.0.1:8000", "aaaa", "served")


def test_a_file_and_the_folder_of_its_run_are_the_same_place(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text("experiment_name: e\nactor: {path: x}\nrollout: {backend: 'served:d2', addresses: ['h:1']}\n")
    by_file = find_run(file, ["trial_name=t", "actor.path=y"])
    assert by_file.folder == Path("runs/e/t")
    assert (by_file.kind, by_file.discovery.run, by_file.discovery.addresses) == ("served", "e/t", ("h:1",))
    by_file.discovery.open().announce("a", A, ttl=60)
    assert list(Path("runs/e/t/servers/announced").iterdir())
    by_folder = find_run(Path("runs/e/t"))
    assert by_folder.folder == tmp_path / "runs" / "e" / "t"
    assert by_folder.discovery.open().list() == {"a": A}
    # A resolved configuration, of a run that was started elsewhere and moved.
    moved = "experiment_name: old\ncluster: {fileroot: gone}\nrollout: {backend: vllm}"
    Path("runs/e/t/config.yaml").write_text(moved, encoding="utf-8")
    assert find_run(Path("runs/e/t")).discovery.open().list() == {"a": A}
    assert find_run(Path("runs/e/t")).kind == "vllm"


def test_a_registry_root_of_its_own_replaces_the_run_folders(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"cluster: {{fileroot: elsewhere, name_resolve: {{type: nfs, nfs_record_root: {tmp_path}/names}}}}")
    find_run(file).discovery.open().announce("a", A, ttl=60)
    assert (tmp_path / "names/archon/trial0/servers/announced/a.server.json").is_file()


def test_overrides_belong_to_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes no overrides; give the YAML file"):
        find_run(tmp_path / "e" / "t", ["trial_name=x"])
    with pytest.raises(ConfigError, match="cannot be read"):
        find_run(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("kind", "addresses", "message"),
    [
        ("dns", (), "found dns without rollout.addresses"),
        ("fold", (), "server registry 'fold': no installed plugin provides it; did you mean 'folder'"),
    ],
)
def test_registries_that_do_not_exist_or_lack_an_option_are_refused(kind, addresses, message) -> None:
    with pytest.raises(ArchonError, match=message):
        Discovery(NameResolveConfig(type=kind, nfs_record_root="x"), "e/t", addresses).open()


def test_servers_announce_themselves_where_others_can_see_it() -> None:
    assert Discovery(NameResolveConfig("static"), "e/t", ("h:1",)).open().list()["h:1"].address == "h:1"
    Discovery(NameResolveConfig("folder"), "e/t").check_announcing()
    for kind in ("static", "dns", "memory"):
        with pytest.raises(ConfigError, match=f"found '{kind}', in which servers cannot announce themselves"):
            Discovery(NameResolveConfig(kind), "e/t").check_announcing()


def test_the_processes_of_a_run_share_a_token_that_other_users_cannot_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("ARCHON_SERVER_TOKEN", raising=False)
    folder = tmp_path / "servers"
    assert read_token(folder) == ""
    token = run_token(folder)
    assert len(token) > 20
    assert run_token(folder) == read_token(folder) == token
    assert [path.name for path in folder.iterdir()] == ["token"]
    (folder / "token").chmod(0o640)
    with pytest.raises(ConfigError, match="mode 640; allowed is a file of this user with mode 600"):
        run_token(folder)
    monkeypatch.setenv("ARCHON_SERVER_TOKEN", "mine")
    assert run_token(folder) == "mine"
    monkeypatch.delenv("ARCHON_SERVER_TOKEN")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="set ARCHON_SERVER_TOKEN"):
        run_token(tmp_path / "file")
