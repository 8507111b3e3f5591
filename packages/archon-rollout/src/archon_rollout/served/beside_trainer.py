"""Servers for processes beside the trainer, which use them while it trains: implements ``contracts.serving``'s part of
an engine. Nothing here is collective; the first rank calls it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from archon_core.contracts.rollout import RolloutConfig
from archon_core.contracts.serving import ClientRecipe, RolloutClient, ServerDriverSpec
from archon_core.serving.record import ServerRecord
from archon_rollout.pool.client import PoolClient
from archon_rollout.pool.members import PoolStatus
from archon_rollout.pool.pool import Pool


class BesideTrainer:
    """Part of an engine with servers."""

    _config: RolloutConfig
    _kind: ServerDriverSpec
    _options: Any
    _pool: Pool | None = None
    _client: PoolClient | None = None
    _token: str = ""
    _on_switch: Callable[[], None] | None = None

    @property
    def client(self) -> RolloutClient:
        """Generates on the servers, for threads of the first rank."""
        assert self._client is not None, "only the first rank has a client"
        return self._client

    def server_status(self) -> PoolStatus:
        """What the first rank knows of the servers."""
        assert self._pool is not None, "only the first rank has a pool"
        return self._pool.status()

    def client_recipe(self) -> ClientRecipe:
        """See ``contracts.serving.ServingEngine``."""
        options = None
        if self._options is not None:
            kind = _declared_class(self._options)
            options = {"target": f"{kind.__module__}:{kind.__qualname__}", "fields": _fields_of(kind, self._options)}
        config = _fields_of(RolloutConfig, self._config)
        data = {"driver": self._kind.name, "config": config, "options": options, "token": self._token}
        return ClientRecipe("archon_rollout.pool.remote:PushedClient", data)

    def on_switch(self, call: Callable[[], None]) -> None:
        """See ``contracts.serving.ServingEngine``."""
        self._on_switch = call

    def servers(self) -> list[ServerRecord]:
        """See ``contracts.serving.ServingEngine``."""
        assert self._pool is not None
        return self._pool.active()

    def answering(self) -> list[str]:
        """See ``contracts.serving.ServingEngine``."""
        assert self._pool is not None
        return self._pool.answering()

    def report_failures(self, failures: Mapping[str, str]) -> None:
        """See ``contracts.serving.ServingEngine``."""
        assert self._pool is not None
        self._pool.report_failures(failures)

    def needs_publication(self) -> bool:
        """See ``contracts.serving.ServingEngine``."""
        assert self._pool is not None
        return self._pool.is_empty()

    def _switching(self) -> None:
        """Servers switch now."""
        assert self._pool is not None
        self._pool.switching()
        if self._on_switch is not None:
            self._on_switch()


def _declared_class(section: Any) -> type[Any]:
    """The class that a plugin declares for a section. A configuration has a subclass of it, made when it is loaded."""
    return next(
        kind
        for kind in type(section).__mro__
        if is_dataclass(kind) and fields(kind) and getattr(sys.modules[kind.__module__], kind.__name__, None) is kind
    )


def _fields_of(kind: type[Any], section: Any) -> dict[str, Any]:
    """Options of a section that ``kind`` has. Plugins may have extended the section with options of their own."""
    values = asdict(section)
    return {field.name: values[field.name] for field in fields(kind)}
