"""The thread that generates, when it cannot go on: nobody waits for it for ever."""

import pytest

from archon_core.errors import ServerError
from archon_core.ranks.ranks import Ranks
from archon_rollout.server.decode_thread import DecodeThread
from archon_rollout.server.serving_loop import ServingLoop


def test_a_command_that_ends_the_thread_fails_and_so_do_later_ones(weights):
    def break_down(version):
        raise RuntimeError("the weights are gone")

    weights.updates.commit = break_down
    failures = []
    decode = DecodeThread(ServingLoop(weights, max_rows=2), Ranks(), on_failure=failures.append)
    decode.start()
    for control in (lambda: decode.commit(6), lambda: decode.pause("keep")):
        with pytest.raises(ServerError, match=r"generation failed: RuntimeError.*the weights are gone"):
            control().result(20)
    decode.join(20)
    assert [str(failure) for failure in failures] == ["the weights are gone"], "which ends the server"
