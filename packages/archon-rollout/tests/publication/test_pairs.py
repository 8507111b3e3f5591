"""Pairs of the transport ``distributed``: measured time limits, and servers that join when nobody waits any more."""

from __future__ import annotations

import pytest

from archon_core.serving.update import BucketNotice
from archon_rollout.transports.distributed import LEAST_SECONDS, SLOWER, DistributedTransport


def notice(version, n_bytes):
    return BucketNotice(version, 0, (), (), n_bytes)


@pytest.fixture
def transport(context, store):
    made = DistributedTransport(context, store)
    yield made
    made.close()


def test_the_slowest_server_of_a_version_sets_the_time_limit(transport):
    for seconds in (2.0, 3.0, 1.0):
        transport._measure(notice(1, 1000), seconds)
    transport._measure(notice(1, 10), 5.0)
    assert transport._time_limit(notice(1, 1000)) == SLOWER * 3.0
    transport._measure(notice(2, 0), 9.0)
    transport._measure(notice(2, 1000), 1.5)
    assert transport._time_limit(notice(2, 1000)) == SLOWER * 1.5
    assert transport._time_limit(notice(2, 1)) == LEAST_SECONDS
