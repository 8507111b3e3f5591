"""What a resumed run does otherwise than it began: never refused for that, and never silent about it."""

from __future__ import annotations

from archon_core.config.raw import RawMapping, RawNode, shown, walk
from archon_core.config.yaml_file import parse_yaml, read_yaml
from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_train.run.folder import RunFolder

UNREMARKABLE = ("trainer.resume", "trainer.auto_resume", "trainer.accept_changed", "cluster.fileroot")
"""Options that differ between a run and its continuation, or that say only where its folder stands."""


def changes_since_start(folder: RunFolder, resolved: str) -> list[Decision]:
    """One decision per option that has another value than in the folder's ``config.yaml``.

    Args:
        folder: of a run that goes on.
        resolved: the whole configuration that it goes on with, as YAML.

    Raises:
        ConfigError: it was begun by another algorithm, or its ``config.yaml`` cannot be read.
    """
    if not folder.config.is_file():
        return []
    before, now = _leaves(read_yaml(folder.config)), _leaves(parse_yaml(resolved, "the configuration"))
    if "algorithm" in before and before["algorithm"] != now["algorithm"]:
        began = shown(before["algorithm"])
        raise ConfigError(
            f"algorithm: found {shown(now['algorithm'])}, and the run in {folder.path} was begun with {began}; go on "
            f"with algorithm={began}, or begin another run with another trial_name"
        )
    return [
        Decision(option, _shown(now, option), _shown(now, option), f"until now the run had {_shown(before, option)}")
        for option in dict.fromkeys((*before, *now))
        if before.get(option) != now.get(option) and option not in UNREMARKABLE
    ]


def _leaves(tree: RawMapping) -> dict[str, RawNode]:
    return {path: node for path, node in walk(tree) if not isinstance(node, RawMapping)}


def _shown(leaves: dict[str, RawNode], option: str) -> str:
    return shown(leaves[option]) if option in leaves else "left out"
