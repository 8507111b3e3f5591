"""Programs of Archon that tests of whole runs start: forks of one process per worker that has imported everything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from archon_testing.fork_server import ForkServer, starting_by_forks


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Starts programs, which start their ranks, collectors and servers as forks, too."""
    server = ForkServer(forked=False, nested=True)
    yield server
    server.close()


@pytest.fixture
def by_forks(forks: ForkServer) -> Iterator[None]:
    """What this process itself starts are forks: ranks of ``archon train``, collectors and servers."""
    with starting_by_forks(forks):
        yield
