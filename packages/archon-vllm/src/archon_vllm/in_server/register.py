"""Entry point of vLLM's plugins. vLLM calls it in every process, in some twice."""

from __future__ import annotations

import contextlib

ENGINES = ("archon_shm", "archon_distributed")
"""Names for ``--weight-transfer-config``."""


def register() -> None:
    """Register the weight transfer engines. Idempotent."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for name in ENGINES:
        with contextlib.suppress(ValueError):  # vLLM refuses a name that is registered, as in the second call
            WeightTransferEngineFactory.register_engine(
                name, "archon_vllm.in_server.engine", "ArchonWeightTransferEngine"
            )
