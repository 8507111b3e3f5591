"""A busy server is told from one whose engine hangs."""

from __future__ import annotations

import pytest
from vllm_server import VllmServer

from archon_core.contracts.rollout import RolloutConfig
from archon_core.errors import ServerError
from archon_vllm.driver import VllmDriver
from archon_vllm.options import VllmOptions
from archon_vllm.progress import makes_tokens

SECONDS = 20.0


def test_counters_that_rise_are_those_of_a_server_that_makes_tokens():
    with VllmServer({}, token="secret") as server:
        assert not makes_tokens(server.address, token="secret", timeout=0.3)
        server.running.add("generate-tokens-r-0")
        assert makes_tokens(server.address, token="secret", timeout=SECONDS)
        assert not makes_tokens(server.address, token="wrong", timeout=0.1), "without counters"
    with pytest.raises(ServerError, match="cannot connect"):
        makes_tokens(server.address, token="secret", timeout=SECONDS)


def test_a_run_leaves_room_for_probes_in_the_batch():
    config = RolloutConfig(weight_transport="shm")
    assert VllmDriver(config, options=VllmOptions(max_num_seqs=128)).capabilities.max_sequences == 124
