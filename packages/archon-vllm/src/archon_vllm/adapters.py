"""Loads adapters apart from the weights that they adapt, each version under another name.

Not in place: whenever vLLM 0.32 batches a request whose adapter was loaded by ``load_inplace``, it loads this adapter
again from the folder of that time, and so the old weights over the new ones. In the prefix cache, too, another name is
another adapter.

vLLM keeps the ``max_loras`` adapters that were used last. A request whose adapter it has dropped, such as one that has
waited long, makes it read the adapter's folder again, and without the folder the worker fails. So the folder stays as
long as requests may use the version. Unloading an adapter only removes its name (vLLM issue 54839).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from archon_core.errors import ServerError, UncertainCallError
from archon_core.serving.adapter_versions import FOLDER, adapter_name
from archon_core.serving.http_client import exchange
from archon_vllm.options import ADAPTER_TRANSPORTS


def loads_adapters(rollout: Any, transport: str | None) -> bool:
    """Whether servers load adapters apart.

    Args:
        rollout: the section ``rollout``.
        transport: its weight transport; ``None`` for the preferred one.
    """
    return bool(getattr(rollout, "use_lora", False)) and transport in ADAPTER_TRANSPORTS


def load_adapter(address: str, version: int, folder: str, *, token: str, timeout: float) -> None:
    """Load the adapter of a version from the version's folder.

    vLLM refuses a name that it has. A trainer that ended, or a call without an answer, may have left one.

    Raises:
        ServerError: vLLM refused it.
    """
    body = {"lora_name": adapter_name(version), "lora_path": f"{folder}/{FOLDER}"}
    try:
        _post(address, "/v1/load_lora_adapter", body, token=token, timeout=timeout)
    except UncertainCallError:
        raise
    except ServerError:
        with suppress(ServerError):
            unload_adapter(address, version, token=token, timeout=timeout)
        _post(address, "/v1/load_lora_adapter", body, token=token, timeout=timeout)


def unload_adapter(address: str, version: int, *, token: str, timeout: float) -> None:
    """Remove the name of a version's adapter, for new requests."""
    body = {"lora_name": adapter_name(version)}
    _post(address, "/v1/unload_lora_adapter", body, token=token, timeout=timeout)


def _post(address: str, path: str, data: Any, *, token: str, timeout: float) -> None:
    # Answers with a sentence, not JSON.
    status, content = exchange(address, "POST", path, data, token=token, timeout=timeout)
    if status != 200:
        raise ServerError(f"server {address}: {path} answered {status}: {content[:300].decode(errors='replace')}")
