"""Messages between the actor's ranks and those of other roles over gloo, here between threads."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist

from archon_core.ranks.role_link import RoleLink
from archon_core.ranks.role_ranks import RoleRanks
from archon_engine.distributed.role_channels import link_roles

TRAINER = (
    RoleRanks("actor", ("actor",), 0, 2),
    RoleRanks("critic", ("critic", "ref"), 2, 2),
    RoleRanks("teacher", ("teacher",), 4, 1),
)
TENSORS = {
    "ids": torch.arange(6),
    "mask": torch.tensor([True, False, True]),
    "half": torch.randn(3, 2).bfloat16(),
    "strided": torch.randn(4, 3, dtype=torch.float64).t(),
    "number": torch.tensor(2.5),
    "none": torch.zeros(0, 4),
}


def on_all_ranks(body: Callable[[int, Mapping[str, RoleLink]], Any]) -> list[Any]:
    store = dist.HashStore()

    def run(rank: int) -> Any:
        return body(rank, link_roles(store, rank, TRAINER))

    with ThreadPoolExecutor(5) as pool:
        return list(pool.map(run, range(5)))


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", loopback))


def test_every_rank_gets_equal_content_and_tensors() -> None:
    def body(rank: int, links: Mapping[str, RoleLink]) -> Any:
        if rank < 2:
            assert links["ref"] is links["critic"] is not links["teacher"]
            number = links["teacher"].request(("teach", rank), TENSORS if rank == 0 else {})
            found = links["ref"].ask(("values", rank), TENSORS if rank == 0 else {})
            return found, links["teacher"].answer(number)
        message = links["actor"].next_request()
        tensors = {name: tensor.clone() for name, tensor in message.tensors.items()}
        links["actor"].reply(("done", rank, message.content), tensors)
        return message

    for rank, found in enumerate(on_all_ranks(body)):
        messages = found if rank < 2 else [found]
        expected = [("done", 2, ("values", 0)), ("done", 4, ("teach", 0))] if rank < 2 else [messages[0].content]
        assert [message.content for message in messages] == expected
        for message in messages:
            assert list(message.tensors) == list(TENSORS)
            for name, tensor in TENSORS.items():
                assert message.tensors[name].dtype == tensor.dtype
                assert torch.equal(message.tensors[name], tensor)


def test_the_background_link_is_independent() -> None:
    def body(rank: int, links: Mapping[str, RoleLink]) -> Any:
        if rank >= 2:
            link = links["actor"].background
            assert link is not None
            link.reply(link.next_request().content)
            return links["actor"].next_request().content
        found = [links[role].background.ask(role).content for role in ("critic", "teacher")]
        for role in ("critic", "teacher"):
            links[role].tell(f"end {role}")
        return found

    found = on_all_ranks(body)
    assert found == [["critic", "teacher"]] * 2 + ["end critic"] * 2 + ["end teacher"]
