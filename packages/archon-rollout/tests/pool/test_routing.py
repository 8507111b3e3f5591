"""Which server gets a request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from archon_rollout.pool.routing import Router


def test_requests_go_to_the_server_with_the_fewest_outstanding_tokens() -> None:
    router = Router()
    assert [router.choose("ab", tokens=tokens) for tokens in (100, 30, 30, 30, 30)] == ["a", "b", "b", "b", "b"]
    assert router.choose("ab", tokens=1) == "a"
    router.finish("b", tokens=30)
    assert router.load("b") == 90


def test_a_group_stays_on_its_server_while_that_is_not_overloaded() -> None:
    router = Router()
    assert [router.choose("ab", tokens=10, group="g") for _ in range(2)] == ["a", "a"]
    assert router.choose("ab", tokens=10, group="g") == "b", "20 tokens against none, and 10 to come"
    assert router.choose("a", tokens=10, group="g") == "a", "b has left"


@given(st.lists(st.tuples(st.integers(1, 500), st.sampled_from(["", "g", "h"]), st.booleans()), max_size=80))
def test_outstanding_tokens_add_up(requests) -> None:
    router, running = Router(), []
    for tokens, group, ends in requests:
        running.append((router.choose("abc", tokens=tokens, group=group), tokens))
        if ends:
            server, n = running.pop(0)
            router.finish(server, tokens=n)
    for server in "abc":
        assert router.load(server) == sum(n for name, n in running if name == server)
