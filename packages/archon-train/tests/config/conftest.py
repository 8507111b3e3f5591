"""Configurations from texts, and a registry with a plugin whose options are known."""

import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import archon_engine.plugin
import archon_train.plugin
from archon_core.config.loading import LoadedConfig
from archon_core.plugins import (
    AlgorithmSpec,
    ConfigSection,
    DatasetSpec,
    InferenceEngineSpec,
    PluginStatus,
    Registry,
    RewardSpec,
    Spec,
)
from archon_core.plugins.loader import collect_specs, load_core
from archon_train.experiment import load_config

OPTIONS_MODULE = "archon_fake_options"

OPTIONS_SOURCE = '''
from dataclasses import dataclass, field

from archon_core.contracts.preview import EnginePreview
from archon_core.errors import ConfigError


@dataclass
class Norm:
    """A nested section.

    Attributes:
        level: how.
    """

    level: str = "batch"


def check_experts(config, *, role, explicit, has_experts):
    return [f"{role}: experts {has_experts}"] if "actor.archon.moe_router_dtype" in explicit else []


@dataclass
class Policy:
    """Options beside core's.

    Attributes:
        eps_clip: a number.
        norm: a section.
        names: texts.
    """

    eps_clip: float = 0.2
    norm: Norm | None = None
    names: list[str] = field(default_factory=list)

    def __post_init__(self):
        if self.eps_clip == 13:
            raise ConfigError("actor.eps_clip: found 13; allowed is any other number")


@dataclass
class OtherPolicy:
    """The same name again.

    Attributes:
        eps_clip: another one's number.
    """

    eps_clip: float = 0.5


@dataclass
class ClashesWithCore:
    path: str = ""


@dataclass
class NoDefault:
    needed: int


@dataclass
class Puzzle:
    """A data set's own section.

    Attributes:
        size: how large.
    """

    size: int = 3


not_a_dataclass = 3


def split(layer_costs, *, embed_cost, head_cost, schedule, n_ranks, options, role):
    """A pipeline's, which wants ten layers."""
    if len(layer_costs) < 10:
        raise ConfigError(f"{role}: {len(layer_costs)} layers on {n_ranks} ranks, {schedule.name}: too few")
    return ["a stage"] * 2 * n_ranks


def refuse_all(outline):
    """An engine's preview."""
    role = outline.role
    written = sorted(option for option in outline.explicit if option.startswith(role) and role == "actor")
    return EnginePreview((f"{role} refused {written}".removesuffix(" []"),))
'''


def plugin(name: str, *specs: Spec, status: str = "loaded", cause: str = "") -> PluginStatus:
    """A plugin of the package ``archon-<name>`` that provides ``specs``."""
    from dataclasses import replace

    distribution = f"archon-{name}"
    owned = tuple(replace(spec, origin=distribution) for spec in specs)
    return PluginStatus(
        name=name,
        distribution=distribution,
        version="0.1.0",
        module=f"archon_{name}.plugin",
        status=status,  # type: ignore[arg-type]
        cause=cause,
        specs=owned,
    )


def section(path: str, schema: str) -> ConfigSection:
    return ConfigSection(path, f"{OPTIONS_MODULE}:{schema}")


def rl_plugin() -> PluginStatus:
    return plugin(
        "rl",
        AlgorithmSpec(name="sft", target="json:loads", trainer="json:loads"),
        AlgorithmSpec(
            name="grpo",
            target="json:loads",
            trainer="json:loads",
            config=(section("actor", "Policy"),),
            needs=("inference_engine",),
            separable=("critic", "ref", "teacher"),
        ),
        RewardSpec(name="gsm8k", target="json:loads"),
        DatasetSpec(name="jsonl", target="json:loads"),
        DatasetSpec(name="hf", target="json:loads"),
        DatasetSpec(name="puzzle", target="json:loads", config=(section("data.puzzle", "Puzzle"),)),
    )


def rollout_plugin() -> PluginStatus:
    return plugin("rollout", InferenceEngineSpec(name="local", target="json:loads", letters=""))


@pytest.fixture(autouse=True)
def _options_module(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("options")
    (folder / f"{OPTIONS_MODULE}.py").write_text(OPTIONS_SOURCE)
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop(OPTIONS_MODULE, None)


@pytest.fixture
def make_registry() -> Callable[..., Registry]:
    """A registry of core, archon-engine, archon-train and the plugins given."""
    own = [
        collect_specs(module, PluginStatus(name, f"archon-{name}", "0.1.0", module.__name__))
        for name, module in (("engine", archon_engine.plugin), ("train", archon_train.plugin))
    ]

    def make(*plugins: PluginStatus) -> Registry:
        return Registry([load_core(), *own, *plugins])

    return make


@pytest.fixture
def registry(make_registry: Callable[..., Registry]) -> Registry:
    """Core with one plugin for algorithms and one for rollout."""
    return make_registry(rl_plugin(), rollout_plugin())


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def load(registry: Registry, write: Callable[[str], Path]) -> Callable[..., LoadedConfig]:
    """Load a configuration from its text."""

    def load(
        text: str, overrides: Sequence[str] = (), *, plugins: Registry | None = None, allow_missing: bool = False
    ) -> LoadedConfig:
        return load_config(write(text), overrides, plugins or registry, allow_missing=allow_missing)

    return load
