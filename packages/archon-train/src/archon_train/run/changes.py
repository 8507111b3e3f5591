"""Options that changed since a resumed run was started: allowed, and recorded as decisions."""

from __future__ import annotations

from archon_core.config.raw import RawMapping, RawNode, shown, walk
from archon_core.config.yaml_file import parse_yaml, read_yaml
from archon_core.contracts.decisions import Decision
from archon_core.errors import ConfigError
from archon_train.run.folder import RunFolder

UNREMARKABLE = ("trainer.resume", "trainer.auto_resume", "trainer.accept_changed", "cluster.fileroot")
"""Options that always differ between a run and its continuation, or only locate its folder."""


def changes_since_start(folder: RunFolder, resolved: str) -> list[Decision]:
    """One decision per option whose value differs from the folder's ``config.yaml``.

    Args:
        folder: of the resumed run.
        resolved: the whole current configuration, as YAML.

    Raises:
        ConfigError: the run was started with another algorithm, or its ``config.yaml`` cannot be read.
    """
    if not folder.config.is_file():
        return []
    before, now = _leaves(read_yaml(folder.config)), _leaves(parse_yaml(resolved, "the configuration"))
    if "algorithm" in before and before["algorithm"] != now["algorithm"]:
        began = shown(before["algorithm"])
        raise ConfigError(
            f"algorithm: found {shown(now['algorithm'])}, but the run in {folder.path} was started with {began}; set "
            f"algorithm={began}, or start a new run with another trial_name"
        )
    return [
        Decision(
            option, _shown(now, option), _shown(now, option), f"before this resume it was {_shown(before, option)}"
        )
        for option in dict.fromkeys((*before, *now))
        if before.get(option) != now.get(option) and option not in UNREMARKABLE
    ]


def _leaves(tree: RawMapping) -> dict[str, RawNode]:
    return {path: node for path, node in walk(tree) if not isinstance(node, RawMapping)}


def _shown(leaves: dict[str, RawNode], option: str) -> str:
    return shown(leaves[option]) if option in leaves else "left out"
