"""Recomputation and compilation of the blocks of a plain module with dropout."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from archon_core.errors import ConfigError
from archon_core.models.parallel_plan import ParallelPlan
from archon_engine.assembly.blocks import prepare_blocks
from archon_engine.distributed.determinism import (
    ENVIRONMENT,
    deterministic_effects,
    ensure_deterministic,
    is_deterministic,
    set_deterministic,
)
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_engine.options.effective import resolve_effective
from archon_engine.parallel.activation_checkpointing import is_kept
from archon_engine.parallel.compilation import check_compiler
from archon_testing.worlds import run_world

PLAN = ParallelPlan(roles={}, attention=("layers.{layer}.core",), units=("layers.{layer}",))
COMPILE = "actor.archon.enable_compile"


class Core(nn.Module):
    """What stays eager in a compiled block."""

    def forward(self, x):
        return functional.dropout(x.softmax(-1), 0.3)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.core = Core()
        self.up = nn.Linear(8, 16, dtype=torch.float64)
        self.down = nn.Linear(16, 8, dtype=torch.float64)

    def forward(self, x):
        return x + functional.dropout(self.down(functional.gelu(self.up(self.core(x)))), 0.5)


def build(ac_mode, *, compiled=False, **options):
    """Three blocks, and what was done to them."""
    torch.manual_seed(0)
    module = nn.Module()
    module.layers = nn.ModuleDict({str(number): Block() for number in range(3)})
    options = ArchonOptions(ac_mode=ac_mode, enable_compile=compiled, ac_debug=True, **options)
    config = ArchonEngineConfig(gradient_checkpointing=True, archon=options)
    effective, _ = resolve_effective(config, role="actor", device="cpu", explicit=frozenset({COMPILE}))
    return module, prepare_blocks(module, PLAN, effective, role="actor").log


def test_every_nth_block_of_fewer_blocks_is_refused():
    with pytest.raises(ConfigError, match=r"selective_ac_option: found 4; the model has 3 blocks.*allowed are 1 to 3"):
        build("selective", selective_ac_option="4")


def gradients(module, *, n_tokens=6):
    torch.manual_seed(1)
    x = torch.randn(n_tokens, 8, dtype=torch.float64, requires_grad=True)
    out = x
    for block in module.layers.values():
        out = block(out)
    out.square().sum().backward()
    torch.manual_seed(2)
    return [x.grad, *(parameter.grad for parameter in module.parameters())]


def is_equal(these, those):
    return all(torch.equal(one, other) for one, other in zip(these, those, strict=True))


SELECTIVE, EVERY_SECOND, FULL = (
    {"ac_mode": "selective"},
    {"ac_mode": "selective", "selective_ac_option": "2"},
    {"ac_mode": "full"},
)


def test_recomputed_dropout_drops_what_it_dropped_before():
    expected = gradients(build("none")[0])
    for options in (SELECTIVE, EVERY_SECOND, FULL):
        module, log = build(**options)
        assert is_equal(gradients(module), expected), options
        dropped = [log.blocks[f"layers.{number}"].recomputed.operations["bernoulli_"] for number in range(3)]
        assert dropped == ([0, 2, 0] if options is EVERY_SECOND else [2, 2, 2]), options


def test_names_of_parameters_do_not_change_and_blocks_keep_their_classes():
    plain = build("none")[0]
    for options in ({"ac_mode": "none", "compiled": True}, SELECTIVE, {**FULL, "compiled": True}):
        module, _ = build(**options)
        assert list(module.state_dict()) == list(plain.state_dict())
        assert all(type(block) is Block for block in module.layers.values())


def test_the_log_tells_what_each_mode_keeps_and_recomputes():
    kept, again = {}, {}
    for name, options in {"none": {"ac_mode": "none"}, "selective": SELECTIVE, "full": FULL}.items():
        module, log = build(**options)
        gradients(module, n_tokens=6)
        first = log.blocks["layers.0"]
        kept[name], again[name] = first.kept, first.recomputed
        gradients(module, n_tokens=60)
        assert log.blocks["layers.0"] is first, "only the first micro-batch is measured"
    row, wide = 6 * 8 * 8, 6 * 16 * 8
    # Softmax, two masks and one output of dropout, the first product and its GELU.
    assert kept["none"].bytes == 4 * row + 2 * wide
    assert kept["selective"].bytes == 2 * row + wide  # the input and both products
    assert kept["full"].bytes == row
    assert not again["none"].operations
    assert not again["selective"].operations["addmm"]
    assert again["full"].operations["addmm"] == 2
    assert again["selective"].bytes < again["full"].bytes


def test_the_report_has_a_line_per_block_with_operations_and_bytes():
    module, log = build(**FULL)
    gradients(module)
    lines = log.report().splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["layers.0", "layers.1", "layers.2", "all blocks"]
    assert "kept 0.000 MiB (saved); recomputed 0.0" in lines[1]
    assert "addmm x2" in lines[1]


@pytest.mark.parametrize(
    ("operation", "kept"),
    [
        (torch.ops.aten.mm.default, True),
        (torch.ops.aten.bmm.default, True),
        (torch.ops.aten.addmm.default, True),
        (torch.ops.aten.linear.default, True),
        (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default, True),
        (torch.ops.aten._scaled_dot_product_flash_attention.default, True),
        (torch.ops.higher_order.flex_attention, True),
        (torch.ops._c10d_functional.all_gather_into_tensor.default, True),
        (torch.ops._c10d_functional.reduce_scatter_tensor.default, True),
        (torch.ops._c10d_functional.all_to_all_single.default, True),
        (torch.ops._c10d_functional.wait_tensor.default, False),
        (torch.ops.aten.mul.Tensor, False),
        (torch.ops.aten.silu.default, False),
        (torch.ops.aten.cat.default, False),
    ],
    ids=str,
)
def test_selective_checkpointing_keeps_products_attention_and_collectives(operation, kept):
    assert is_kept(operation) is kept


def compiled_gradients():
    """Deterministic runs in a process of their own: flags are not unset."""
    option = "actor.archon.use_deterministic_algorithms"
    import torch._inductor.config as inductor  # before: it reads its environment once

    assert not is_deterministic()
    assert not inductor.deterministic
    ensure_deterministic(option=option)
    assert is_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert ENVIRONMENT.items() <= os.environ.items()
    assert inductor.deterministic
    numbers, kept = {}, {}
    for mode, options in {
        "none": {"ac_mode": "none"},
        "selective": SELECTIVE,
        "budget": {"ac_mode": "memory_budget", "ac_memory_budget": 0.0},
        "full": FULL,
        "full again": FULL,
    }.items():
        module, log = build(**options, compiled=True)
        numbers[mode] = gradients(module)
        kept[mode] = log.blocks["layers.0"].kept.bytes
    return numbers, kept, log.report()


def test_deterministic_runs_are_bit_identical_compiled_and_with_recomputed_dropout():
    [(numbers, kept, report)] = run_world(compiled_gradients, 1, time_limit=200)
    assert is_equal(numbers["full"], numbers["full again"])
    for mode, found in numbers.items():
        assert is_equal(found, numbers["none"]), mode
    assert kept["full"] < kept["budget"] < kept["selective"] < kept["none"]
    assert "layers.0: kept 0.000 MiB (saved); recomputed 0.000 MiB (all of it, compiled)" in report
    assert "compiled backward graph 0, of every block that runs it: recomputes" in report


def asks_too_late():
    assert dist.is_initialized()
    with pytest.raises(ConfigError) as refused:
        ensure_deterministic(option="actor.archon.use_deterministic_algorithms")
    set_deterministic()
    ensure_deterministic(option="actor.archon.use_deterministic_algorithms")
    return str(refused.value)


def test_deterministic_mode_is_refused_once_a_process_group_was_made_without_it():
    for message in run_world(asks_too_late, 2):
        assert message.startswith("actor.archon.use_deterministic_algorithms: found true, but the process group")
        assert "set_deterministic() before init_process_group" in message


def test_the_five_effects_of_deterministic_mode_are_rows_of_the_decisions_table():
    effects = [decision.effective for decision in deterministic_effects("o")]
    assert effects == [
        "torch.use_deterministic_algorithms(True, warn_only=True)",
        "CUBLAS_WORKSPACE_CONFIG=:4096:8",
        "NCCL_ALGO=Ring",
        "TORCHINDUCTOR_DETERMINISTIC=1, TORCH_COMPILE_DETERMINISTIC=1",
        "preserve_rng_state=True",
    ]


def test_a_cpu_without_a_compiler_is_told_before_anything_is_compiled():
    with pytest.raises(ConfigError, match=r"found true on a CPU without the C\+\+ compiler 'no-such-compiler'.*CXX"):
        check_compiler("cpu", option=COMPILE, environment={"CXX": "no-such-compiler"})
    check_compiler("cuda", option=COMPILE, environment={"CXX": "no-such-compiler"})
