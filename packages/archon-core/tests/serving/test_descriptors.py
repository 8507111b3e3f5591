"""File descriptors of clients: the limit is raised, and having none left is no fault of a server."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket

import pytest

from archon_core.errors import NoDescriptorError, UnreachableError
from archon_core.serving.descriptors import ENOUGH, connection_limit, raise_descriptor_limit
from archon_core.serving.http_client import call, call_async

ANY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        ((1024, 4096), 4096),
        ((1024, 2 * ENOUGH), ENOUGH),
        ((256, ANY), ENOUGH),
        ((ENOUGH, ANY), None),
        ((ANY, ANY), None),
        ((100, 100), None),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_needed_and_allowed(monkeypatch, limits, raised) -> None:
    changes = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, new: changes.append(new))
    limit = raise_descriptor_limit()
    assert limit == (raised or min(limits[0] if limits[0] != ANY else ENOUGH, ENOUGH))
    assert changes == ([] if raised is None else [(raised, limits[1])])
    assert connection_limit() == limit // 2


def test_a_refused_change_leaves_the_limit(monkeypatch) -> None:
    def refuse(which, new):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, ANY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_descriptor_limit() == 256


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ECONNREFUSED])
def test_a_process_without_descriptors_does_not_blame_the_server(monkeypatch, number) -> None:
    expected = UnreachableError if number == errno.ECONNREFUSED else NoDescriptorError

    def fail(*arguments, **options):
        raise OSError(number, "no")

    async def fail_later(*arguments, **options):
        fail()

    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.setattr(asyncio, "open_connection", fail_later)
    for make in (
        lambda: call("127.0.0.1:1", "GET", "/x", token="", timeout=1.0),
        lambda: asyncio.run(call_async("127.0.0.1:1", "/x", {}, token="", timeout=1.0)),
    ):
        with pytest.raises(expected) as raised:
            make()
        assert type(raised.value) is expected
