"""What the plugin brings reaches the configuration of every role, without torch."""

from __future__ import annotations

import subprocess
import sys

from archon_core import registry
from archon_core.config.sections import build_schema, choose_sections
from archon_core.config.typed import convert, knows
from archon_core.config.yaml_file import parse_yaml
from archon_moe.options import MoEOptions, read_options

CONFIG = """
actor: {archon: {moe_aux_loss: sequence, moe_grouped_gemm: false}}
critic: {archon: {moe_z_loss_coef: 1e-3}}
"""


def test_every_role_has_the_options() -> None:
    tree = parse_yaml(CONFIG, "config.yaml")
    schema = build_schema(choose_sections(registry(), tree).used)
    for role in ("actor", "critic", "ref", "teacher"):
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
