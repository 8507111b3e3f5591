"""The model that a server runs: its configuration, engine and tokenizer."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from archon_core import assemble
from archon_core.contracts.engine import TrainEngine, TrainEngineSpec
from archon_core.errors import ConfigError, LayoutError
from archon_core.layout import Layout, backend_table, parse_layout
from archon_core.layout.model_sizes import ShardedExtents, check_sizes
from archon_core.models.end_tokens import EndTokens, end_tokens, folder_ends
from archon_core.plugins import registry
from archon_core.serving.scores import ServedModelInfo
from archon_engine.checkpoint.fingerprint import checkpoint_fingerprint
from archon_engine.models.hf_config import checkpoint_folder
from archon_engine.models.tokenizer import read_tokenizer
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_rollout.model_limits import ModelLimits
from archon_rollout.publication.adapters import adapted

CONFIG_SUFFIX = ".json"


@dataclass(frozen=True)
class ServedModel:
    """What ``--model`` names.

    Attributes:
        name: as the user wrote it.
        config: of the engine.
        folder: the checkpoint folder; ``None`` for an architecture without weights.
    """

    name: str
    config: ArchonEngineConfig
    folder: Path | None

    @classmethod
    def find(cls, name: str, *, dtype: str | None = None, run_as: str | None = None) -> ServedModel:
        """Find a checkpoint folder or hub id; or a ``config.json``, for a server that gets its weights later.

        Raises:
            ModelError, ConfigError: there is no such folder or file, or it is unreadable.
        """
        options = ArchonOptions(model=run_as)
        if name.endswith(CONFIG_SUFFIX):
            try:
                described = json.loads(Path(name).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError(f"--model: cannot read {name}: {error}; give a model's config.json") from error
            config = ArchonEngineConfig(model_config=described, dtype=dtype, optimizer=None, archon=options)
            return cls(name, adapted(config, Path(name).parent), None)
        folder = checkpoint_folder(name)
        return cls(name, ArchonEngineConfig(path=str(folder), dtype=dtype, optimizer=None, archon=options), folder)

    def check_layout(self, layout: Layout) -> None:
        """Check that the ranks can share the attention heads. The engine checks other sizes when it loads the model.

        Raises:
            LayoutError: they cannot.
        """
        described: Any = self.config.model_config
        if self.folder is not None:
            with suppress(OSError, ValueError):  # loading it explains what is wrong with it
                described = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        n_heads = described.get("num_attention_heads") if isinstance(described, dict) else None
        if isinstance(n_heads, int) and n_heads > 0:
            check_sizes(ShardedExtents({"attention heads": n_heads}), layout, option="--layout")

    def load(self, layout: Layout) -> TrainEngine:
        """The engine with the model's weights. Collective over the ranks of the layout."""
        return _initialized(self.config, layout)

    def load_empty(self, layout: Layout) -> TrainEngine:
        """An engine of the same model whose weights do not matter. Collective over the ranks of the layout."""
        return _initialized(replace(self.config, init_from_scratch=self.folder is not None), layout)

    def describe(self, limits: ModelLimits, version: int) -> ServedModelInfo:
        """The model and its limits, for clients that need to know what they talk to. Reads the checkpoint's files."""
        fingerprint = "" if self.folder is None else checkpoint_fingerprint(self.folder)
        return ServedModelInfo(self.name, version, limits.vocab_size, limits.max_positions, fingerprint)

    def text_parts(self) -> tuple[Any, EndTokens] | None:
        """The tokenizer, and the tokens that end a completion; ``None`` without a tokenizer."""
        if self.folder is None:
            return None
        try:
            tokenizer = read_tokenizer(self.folder)
        except ConfigError:
            return None
        return tokenizer, end_tokens(tokenizer.eos_token_id, folder_ends(self.folder))


def parse_server_layout(text: str) -> Layout:
    """The layout of one server.

    Raises:
        LayoutError: it is malformed, or has sizes other than t.
    """
    layout = parse_layout(text, backends=backend_table(registry().all(TrainEngineSpec)), option="--layout")
    if layout.world_size != layout.dims["t"]:
        raise LayoutError(
            f"--layout: found {text}; a server shares each layer among t ranks and has no other axis; write "
            f"{layout.backend}:t{layout.world_size}, or start several servers"
        )
    return layout


def _initialized(config: ArchonEngineConfig, layout: Layout) -> TrainEngine:
    engine = assemble(config, role="rollout", layout=layout)
    engine.initialize()
    return engine
