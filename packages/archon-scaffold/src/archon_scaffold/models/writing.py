"""``archon new model``: reads a configuration, writes the package, and compares it with ``transformers``."""

from __future__ import annotations

from pathlib import Path

from archon_scaffold.folder import new_folder, write_files
from archon_scaffold.models.architecture import Architecture
from archon_scaffold.models.package import model_files
from archon_scaffold.models.parity import find_difference, find_refusal
from archon_scaffold.models.reading import read_architecture
from archon_scaffold.models.source import read_source
from archon_scaffold.names import PackageName


def write_model(name: PackageName, folder: Path, source: str | None) -> Architecture:
    """Write a model package.

    Args:
        name: of the package.
        folder: a new folder.
        source: a ``config.json``, a checkpoint folder or a hub id; ``None`` for a small Llama.

    Returns:
        The architecture; its ``gaps`` are the missing features.

    Raises:
        ConfigError: the folder exists or cannot be written.
        ModelError: the source is not a configuration, or not a Llama-like decoder.
    """
    given = read_source(source)
    architecture, twin = read_architecture(given)
    with new_folder(folder) as draft:
        write_files(draft, model_files(name, architecture))
        difference = find_difference(draft / "src", name.module, twin)
        difference = difference or find_refusal(draft / "src", name.module, given.config)
        # With known gaps, a difference is expected.
        if difference is not None and not architecture.gaps:
            architecture = architecture.with_gaps(difference)
            write_files(draft, model_files(name, architecture))
    return architecture
