"""Layouts give the loss and the gradients of Megatron-Core, which `hatch run test-megatron` installs."""

from __future__ import annotations

import pytest

from archon_core.cli.main import main
from archon_engine.nn.swiglu import SwiGLU
from archon_testing.megatron_oracle.architecture import LIMIT
from archon_testing.megatron_oracle.oracle import MegatronOracle
from archon_testing.requested import read_layouts
from archon_testing.requested_model import read_model
from archon_testing.verification import requested_layouts

pytestmark = pytest.mark.megatron

LAYOUTS = {
    "qwen3": ("t2", "p2-1F1B", "d2t2"),
    "qwen3_moe": ("d2e2", "p2-1F1B"),
    "qwen2": ("t2p2-1F1B",),  # biases of projections
}


def verified(folder, model, layouts, *, micro_batches=(2,), variants=("untied", "tied"), before=None):
    oracle = MegatronOracle(read_model(model), variants, micro_batches, seed=1, folder=folder)
    return list(oracle.verify(requested_layouts(read_layouts(layouts)), before=before))


@pytest.mark.parametrize("model", LAYOUTS)
def test_layouts_give_megatrons_loss_and_gradients(tmp_path, model):
    for report in verified(tmp_path, model, LAYOUTS[model]):
        assert report.passed, (report.refusal, report.crash, report.verdicts)
        for verdict in report.verdicts:
            assert verdict.comparison.worst["gradients"].error <= LIMIT
            assert not verdict.comparison.problems


def multiply_the_gate_instead_of_activating_it():
    SwiGLU.forward = lambda self, x: self.down_proj(self.activation(self.up_proj(x)) * self.gate_proj(x))


def test_a_mistake_in_the_model_which_one_process_makes_too_is_found(tmp_path):
    [report] = verified(
        tmp_path, "qwen3", ("t2",), variants=("untied",), before=multiply_the_gate_instead_of_activating_it
    )
    assert report.outcome == "different"
    assert "gradients" in report.verdicts[0].comparison.failed


def test_the_command_prints_a_table_per_layout_and_refuses_what_megatron_cannot_run(capsys):
    options = ["--oracle", "megatron", "--variant", "untied", "--micro-batches", "2"]
    with pytest.raises(SystemExit) as done:
        main(["verify", "qwen3", *options, "--layout", "d2", "--layout", "c2"])
    printed = capsys.readouterr().out
    assert done.value.code == 2
    assert "archon:d2, 2 ranks" in printed
    assert "context parallelism only with" in printed
    assert "1 of 2 layouts give the numbers of Megatron-Core" in printed
