"""The options of archon-moe are known in the engine section of every role, without importing torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

from archon_core import registry
from archon_core.config.root import RootSchema
from archon_core.config.rules import broken_rules
from archon_core.config.sections import build_schema, choose_sections
from archon_core.config.typed import convert, knows
from archon_core.config.yaml_file import parse_yaml
from archon_core.contracts.engine_config import ROLES, EngineConfig
from archon_core.plugins import TrainEngineSpec
from archon_moe.options import MoEOptions, read_options

CONFIG = """
actor: {archon: {moe_aux_loss: sequence, moe_grouped_gemm: false}}
critic: {archon: {moe_z_loss_coef: 1e-3}}
"""


@dataclass
class Models:
    """A configuration of nothing but models."""

    actor: EngineConfig = field(default_factory=lambda: EngineConfig(backend="archon:d1"))
    critic: EngineConfig | None = None
    ref: EngineConfig | None = None
    teacher: EngineConfig | None = None


def test_fields_carry_the_rules_that_configurations_are_checked_with() -> None:
    options = MoEOptions(moe_aux_loss="sequences", moe_z_loss_coef=-1.0)
    assert dict(broken_rules(options)) == {
        "moe_aux_loss": "found 'sequences'; allowed are none, sequence, global_batch; did you mean 'sequence'?",
        "moe_z_loss_coef": "found -1.0; allowed are numbers from 0; 0 disables it",
    }


def test_every_role_has_the_options() -> None:
    tree = parse_yaml(CONFIG, "config.yaml")
    root = RootSchema(Models, {"train_engine": tuple(f"{role}.backend" for role in ROLES)})
    root = root.with_engines(registry().all(TrainEngineSpec))
    schema = build_schema(root.schema, choose_sections(registry(), tree, root).used)
    for role in ROLES:
        assert knows(schema, f"{role}.archon.moe_aux_loss"), role
    converted = convert(tree, schema)
    assert converted.problems == ()
    actor = schema().actor.archon
    assert read_options(actor) == MoEOptions()
    for name, value in converted.values["actor"]["archon"].items():
        setattr(actor, name, value)
    assert read_options(actor) == MoEOptions(moe_aux_loss="sequence", moe_grouped_gemm=False)
    assert converted.values["critic"] == {"archon": {"moe_z_loss_coef": 1e-3}}


def test_plugin_and_options_import_no_torch() -> None:
    code = "import archon_moe.plugin, archon_moe.options, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
