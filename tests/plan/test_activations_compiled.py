"""Planned activations of compiled blocks against what AOTAutograd's partitioner keeps of real ones."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch._inductor.output_code import OutputCode  # private, as all of Inductor
from transformers import AutoConfig

from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.layout.dims import ParallelDims
from archon_engine.parallel import recompute_log
from archon_engine.parallel.compilation import CompiledBlocks, Keeping
from archon_engine.parallel.recompute_log import RecomputeLog
from archon_engine.parallel.units import blocks_of
from archon_models_qwen.anatomy import anatomy
from archon_models_qwen.arguments import QwenArguments
from archon_models_qwen.decoder import QwenDecoder
from archon_models_qwen.parallel_plan import parallel_plan
from archon_plan.activations import activation_moments
from archon_plan.setting import Setting, Tokens
from plan.small_models import DENSE

TOKENS = 192
SMALL = {**DENSE, "num_hidden_layers": 2}
SCALARS = 1.0001
"""Graphs also keep a few scalars, such as the norms' eps."""


class Interpreted(OutputCode):
    """A graph in place of the code that Inductor would generate for it."""

    _boxed_call = True

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        self._graph = graph

    def __call__(self, inputs: Any) -> Any:
        return self._graph(*inputs)

    def post_compile(self, *_: Any) -> None: ...

    def set_triton_bundle(self, *_: Any) -> None: ...


def kept_by_a_block(keeping: Keeping | None) -> int:
    """Bytes that the second block keeps for backward; the first one's include what all blocks share."""
    arguments = QwenArguments.from_hf_config(AutoConfig.for_model(**SMALL), critic=False)
    module, plan = QwenDecoder(arguments).to(torch.bfloat16), parallel_plan(arguments)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    log = RecomputeLog(compiled=True)

    CompiledBlocks(module, plan, keeping=keeping, log=log)
    for name, block in blocks_of(module, plan):
        log.watch(name, block)
    ids = torch.zeros(TOKENS, dtype=torch.int64)
    packed = PackedSequences.from_lengths((TOKENS // 2,) * 2, head=HeadInputs(("logprobs",), torch.zeros_like(ids)))
    with patch.object(recompute_log, "inductor_compile", lambda graph, inputs, **_: Interpreted(graph)):
        module(ids, packed)
    return log.blocks["layers.1"].kept.bytes


def planned(**options: Any) -> float:
    """Bytes that one block keeps by plan."""
    sums = []
    for layers in (1, 2):
        setting = Setting(
            anatomy({**SMALL, "num_hidden_layers": layers}),
            ParallelDims(),
            Tokens(TOKENS, sequence=TOKENS // 2),
            compiles=True,
            **options,
        )
        sums.append(activation_moments(setting, 0, on_cpu=True)[0].kept)
    return sums[1] - sums[0]


@pytest.mark.wide
@pytest.mark.parametrize(("mode", "keeping"), [("none", None), ("selective", Keeping.by_operation())])
def test_a_compiled_block_keeps_what_is_planned(mode, keeping):
    assert kept_by_a_block(keeping) == pytest.approx(planned(checkpointing=mode), rel=SCALARS - 1)


@pytest.mark.wide
@pytest.mark.parametrize("budget", [0.0, 0.5])
def test_a_budget_bounds_what_is_kept(budget):
    kept = kept_by_a_block(Keeping.within(budget))
    least = planned(checkpointing="memory_budget", budget=0.0)
    assert least <= kept <= planned(checkpointing="memory_budget", budget=budget) * SCALARS


def test_a_budget_lies_between_inputs_of_blocks_and_the_default():
    shares = [planned(checkpointing="memory_budget", budget=budget) for budget in (0.0, 0.25, 0.5, 1.0)]
    assert planned(checkpointing="full") < shares[0]
    assert shares[3] == planned(checkpointing="none")
    steps = [(share - shares[0]) / (shares[3] - shares[0]) for share in shares]
    assert steps == pytest.approx([0.0, 0.25, 0.5, 1.0])
