"""From a configuration and what is installed to an engine, with an engine that keeps what it was given."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from archon_core import assemble
from archon_core.contracts.engine_config import EngineConfig
from archon_core.errors import ConfigError, LayoutError, PluginError, UnknownNameError
from archon_core.plugins import (
    ConfigSection,
    ModelSpec,
    MoESpec,
    PipelineSpec,
    PluginStatus,
    Registry,
    ScheduleSpec,
    TrainEngineSpec,
)
from archon_core.plugins.loader import load_core

MODULE = "archon_fake_engine"

SOURCE = """
from dataclasses import dataclass, field

from archon_core.contracts.engine_config import EngineConfig


@dataclass
class Knobs:
    schedule: str = "Spiral"
    model: str | None = None
    experts: str | None = None


@dataclass
class FakeConfig(EngineConfig):
    knobs: Knobs = field(default_factory=Knobs)


class Engine:
    def __init__(self, config, **arguments):
        self.config, self.arguments = config, arguments


def model_type(config, *, role):
    return config.model_config["model_type"]
"""

ENGINE = TrainEngineSpec(
    name="fake",
    target=f"{MODULE}:Engine",
    axes="dp",
    config=(ConfigSection("actor", f"{MODULE}:FakeConfig"),),
    model_type=f"{MODULE}:model_type",
    selectors=(("schedule", "knobs.schedule"), ("model", "knobs.model"), ("moe", "knobs.experts")),
)
DENSE = ModelSpec(name="dense", target="m:dense", model_types=("dense",))
SPARSE = ModelSpec(name="sparse", target="m:sparse", model_types=("sparse",), needs=("moe",))
ANY = ModelSpec(name="any", target="m:any")
SPIRAL = ScheduleSpec(name="Spiral", target="m:spiral")
PIPELINE = PipelineSpec(name="pipeline", target="m:pipeline")
BLOCKS = MoESpec(name="blocks", target="m:blocks")


@pytest.fixture(autouse=True)
def fake_engine(tmp_path, monkeypatch):
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop(MODULE, None)


def installed(*specs):
    owned = tuple(replace(spec, origin="archon-fake") for spec in specs)
    return Registry([load_core(), PluginStatus("fake", "archon-fake", "1.0", "fake", specs=owned)])


def config(model_type="dense", backend="fake:d1"):
    return EngineConfig(backend=backend, model_config={"model_type": model_type})


def parts_of(engine):
    return {name: spec and spec.name for name, spec in vars(engine.arguments["parts"]).items()}


def test_the_engine_gets_its_arguments_and_the_one_part_of_each_kind_that_it_needs():
    plugins = installed(ENGINE, DENSE, SPARSE, SPIRAL, PIPELINE, BLOCKS)
    engine = assemble(config(), seed=7, total_steps=3, explicit=frozenset({"seed"}), registry=plugins)
    assert parts_of(engine) == {
        "engine": "fake",
        "model": "dense",
        "schedule": None,
        "pipeline": None,
        "experts": None,
        "adapter": None,
    }
    assert str(engine.arguments["layout"]) == "fake:d1"
    rest = {name: engine.arguments[name] for name in ("role", "seed", "total_steps", "explicit")}
    assert rest == {"role": "actor", "seed": 7, "total_steps": 3, "explicit": frozenset({"seed"})}
    deep = assemble(config("sparse"), layout="fake:d2p2", registry=plugins)
    assert parts_of(deep) == {
        "engine": "fake",
        "model": "sparse",
        "schedule": "Spiral",
        "pipeline": "pipeline",
        "experts": "blocks",
        "adapter": None,
    }


def test_options_of_the_engine_have_their_defaults_where_a_program_leaves_them_out():
    plain = config()
    made = assemble(plain, registry=installed(ENGINE, DENSE)).config
    assert (made.knobs.schedule, made.model_config) == ("Spiral", plain.model_config)
    assert assemble(made, registry=installed(ENGINE, DENSE)).config is made


def test_a_part_that_the_engines_options_name_is_taken():
    plugins = installed(ENGINE, DENSE, ANY)
    made = assemble(config(), registry=plugins).config
    made.knobs.model = "any"
    assert parts_of(assemble(made, registry=plugins))["model"] == "any"


def test_an_engine_with_models_of_its_own_gets_no_other_parts():
    own = replace(ENGINE, model_type="")
    engine = assemble(config("whatever", backend="fake:p2"), registry=installed(own))
    assert parts_of(engine) == {
        "engine": "fake",
        "model": None,
        "schedule": None,
        "pipeline": None,
        "experts": None,
        "adapter": None,
    }


@pytest.mark.parametrize(
    ("specs", "backend", "model_type", "error", "message"),
    [
        ((), "archon:d1", "dense", UnknownNameError, "It is part of archon-engine: pip install archon-engine"),
        ((ENGINE,), "fake:d1", "qwen3", UnknownNameError, "archon-models-qwen"),
        ((ENGINE, DENSE), "fake:d1t2", "dense", LayoutError, "actor.backend .*: found tensor parallelism"),
        ((ENGINE, DENSE), "fake:p2", "dense", UnknownNameError, "schedule 'Spiral': no installed plugin provides it"),
        ((ENGINE, DENSE, SPIRAL), "fake:p2", "dense", UnknownNameError, "pip install archon-pipeline"),
        ((ENGINE, SPARSE), "fake:d1", "sparse", UnknownNameError, "model 'sparse' has experts.*archon-moe"),
        (
            (ENGINE, SPARSE, BLOCKS, replace(BLOCKS, name="others")),
            "fake:d1",
            "sparse",
            ConfigError,
            "actor.knobs.experts: found none chosen and several installed; allowed are blocks, others",
        ),
        (
            (ENGINE, DENSE, DENSE),
            "fake:d1",
            "dense",
            PluginError,
            "'dense' is provided by archon-fake",
        ),
    ],
    ids=["engine", "model", "axis", "schedule", "pipeline", "experts", "several experts", "clash"],
)
def test_what_is_missing_or_cannot_be_chosen_is_named(specs, backend, model_type, error, message):
    with pytest.raises(error, match=message):
        assemble(config(model_type, backend), registry=installed(*specs))
