"""Planned traffic equals what real engines send in a step, to the byte, on every axis and combination of axes."""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from archon_engine import compat
from archon_plan.traffic import transfers
from archon_testing.worlds import run_world

sys.path.insert(0, str(Path(__file__).parent))

from counted_steps import Case, exchanges, run_cases, run_compiled
from exact_traffic import assert_exact
from wire_counter import WireCounter

ONE_KEY_HEAD = {"num_key_value_heads": 1}
TWO_KEY_HEADS = {"num_key_value_heads": 2}
TIED = {"tie_word_embeddings": True}
ODD = {"hidden_size": 33, "vocab_size": 131, "intermediate_size": 50}
"""Sizes that ranks do not divide."""

QUICK = (
    Case("d2", dtype="bfloat16"),
    Case("r2", dtype="bfloat16"),
    Case("t2", changes=ONE_KEY_HEAD, options={"ac_mode": "full"}),
    Case("c2", changes=ONE_KEY_HEAD, entropy=True),
    Case("c2", options={"cp_style": "gather"}),
    # Transformers' attention sends queries, keys and values at once.
    Case("c2", "hf", options={"model": "hf"}),
    Case("p2", n_mbs=4, changes=TIED, options={"pp_schedule": "1F1B"}),
    Case("p2", n_mbs=4, changes=TIED, options={"pp_schedule": "ZBV"}),
    Case("d2e2", "qwen3_moe", options={"ac_mode": "full"}),
    Case("d2t2", changes=ODD),
    Case("(attn:d2t2|ffn:d1e2t2)", "qwen3_moe", tokens=112),
)
FULL, SELECTIVE = {"ac_mode": "full"}, {"ac_mode": "selective"}
NEVER, ALWAYS = ({"reshard_after_forward_policy": policy} for policy in ("never", "always"))
EACH = {"pp_reduce_grad_per_microbatch": True}
WIDE = (
    # Weights and gradients.
    Case("d2", options=NEVER),
    Case("d2", changes=TIED, options=ALWAYS),
    Case("d4", "qwen3_moe", tokens=30, changes={**ODD, "hidden_size": 36, "num_experts": 6}),
    Case("r2d2", "qwen3_moe"),
    Case("d2t2", changes=ODD, optimizer="muon"),
    Case("r2t2", "qwen3_moe", optimizer="muon"),
    # Tensor and context ranks.
    Case("t2", changes=TIED, options=SELECTIVE, entropy=True),
    Case("t2", options={**SELECTIVE, "selective_ac_option": "2"}, critic=True),
    Case("t4", changes=TWO_KEY_HEADS),
    Case("t4", tokens=112, changes={"num_attention_heads": 12, "num_key_value_heads": 6}),
    Case("c4", changes=TWO_KEY_HEADS),
    Case("t2c2", changes=ONE_KEY_HEAD, options=FULL),
    Case("c4", changes=ONE_KEY_HEAD, options={"cp_style": "gather", **FULL}),
    Case("c4", changes=ONE_KEY_HEAD, options={"cp_style": "hybrid", **SELECTIVE}),
    Case("t2c2", changes=TWO_KEY_HEADS, options={"cp_style": "gather"}),
    # Gated DeltaNet: context ranks exchange states.
    Case("t2c2", "qwen3_5", options=FULL),
    Case("c2", "qwen3_5", options=SELECTIVE),
    # Families of transformers: norms behind regions, and over whole projections.
    Case("t2", "hf", changes={"model_type": "gemma2"}, options={**FULL, "model": "hf"}),
    Case("t2c2", "hf", changes={"model_type": "olmo2"}, options={**FULL, "model": "hf"}),
    # Experts.
    Case("t2e2", "qwen3_moe", options={**SELECTIVE, "moe_aux_loss": "sequence", "moe_z_loss_coef": 0.1}, sequences=2),
    Case("d2", "qwen3_moe", options={**FULL, "moe_aux_loss": "global_batch"}),
    Case("d4e4", "qwen3_moe", options=FULL),
    Case("(attn:d4|ffn:d2e1t2)", "qwen3_moe"),
    Case("(attn:t2c2|ffn:t2e2)", "qwen3_moe", tokens=112, options={"moe_aux_loss": "sequence"}),
    # Pipelines.
    Case("p2", n_mbs=4, changes=TIED, options={"pp_schedule": "I1F1B", **EACH}),
    Case("d2p2", n_mbs=4, options={"pp_schedule": "1F1B", **ALWAYS}),
    Case("d2p2", n_mbs=4, options={"pp_schedule": "IZB", **EACH}),
    Case("d2p2", "qwen3_moe", n_mbs=4, options={"pp_schedule": "ZBV", **ALWAYS, **EACH}),
    Case("d2p2", "qwen3_moe", n_mbs=8, options={"pp_schedule": "I1F1B", **ALWAYS}),
    Case("p2t2", "qwen2", n_mbs=4, options={"pp_schedule": "ZBV", **FULL}),
    Case("p2c2", n_mbs=4, options={"pp_schedule": "1F1B", **FULL}),
    Case("p2d2e2", "qwen3_moe", n_mbs=4, options={"pp_schedule": "ZBV", **FULL}),
    Case("d2p2", "qwen3_moe", n_mbs=4, options={"pp_schedule": "ZBV", **FULL, **ALWAYS}),
    Case("d2p2", n_mbs=4, options={"pp_schedule": "IZB", **SELECTIVE, "selective_ac_option": "2", **ALWAYS}),
    # Forward passes alone.
    Case("d2", changes=TIED, options=ALWAYS, trains=False),
    Case("t2e2", "qwen3_moe", trains=False),
    Case("p2", n_mbs=4, options={"pp_schedule": "ZBV"}, entropy=True, trains=False),
)

VALUES = {
    "archon_engine.step.consistency.agree": lambda s: True,
    "archon_engine.step.loss_totals.gather": lambda s: s.trains,
    "archon_engine.assembly.experts._over_all_ranks": lambda s: s.trains and s.dims.pp > 1 and s.anatomy.has_experts,
    "archon_pipeline.channels.broadcast_object": lambda s: not s.trains and s.dims.pp > 1,
}
"""Exchanges of pickled Python values, which plans leave out, and the settings that have them: the shares of a batch,
the totals of a loss, the loads of experts of other pipeline ranks, and, before the first outputs of a pipeline without
gradients, their formats."""

LARGEST_VALUES = 2**14
"""Bytes of one exchange of Python values between four ranks."""


@cache
def counted(n_ranks: int, is_wide: bool):
    """Case -> what each rank counted; one world runs all cases of a size."""
    cases = [case for case in (WIDE if is_wide else QUICK) if case.n_ranks == n_ranks]
    ranks = [[] for _ in range(n_ranks)]
    run_world(run_cases, n_ranks, (cases,), on_value=lambda rank, value: ranks[rank].append(value))
    return {repr(case): [own[place] for own in ranks] for place, case in enumerate(cases)}


def named(case: Case) -> str:
    changed = {**case.changes, **case.options, "n_mbs": case.n_mbs} | ({} if case.trains else {"trains": False})
    return " ".join([case.layout, case.model, *(f"{name}={value}" for name, value in changed.items())])


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=named(case)) for case in QUICK),
        *(pytest.param(case, id=named(case), marks=pytest.mark.wide) for case in WIDE),
    ],
)
def test_a_rank_sends_what_is_planned_to_the_byte(case):
    ranks = counted(case.n_ranks, case in WIDE)[repr(case)]
    assert_exact([own.setting for own in ranks], [own.sent for own in ranks])
    for own in ranks:
        assert exchanges(own.sent) == {name: 1 for name, has_it in VALUES.items() if has_it(own.setting)}
        assert max(one.bytes for one in own.sent if one.inside) < LARGEST_VALUES


@pytest.mark.wide
def test_compiled_layers_repeat_their_last_scatter_too():
    case = Case("t2", changes={"num_hidden_layers": 1}, options={**FULL, "enable_compile": True})
    for setting, calls in run_world(run_compiled, 2, (case,)):
        assert setting.compiles
        tokens = [each for each in transfers(setting) if each.purpose.startswith(("sequence shards", "vocabulary"))]
        for collective, name in (("all_gather", "all_gather_into_tensor"), ("reduce_scatter", "reduce_scatter_tensor")):
            assert calls[name] == sum(each.calls for each in tokens if each.collective == collective)


def known_operations():
    rank = dist.get_rank()
    x = torch.ones(6, 4)
    with WireCounter() as counter:
        dist.all_reduce(x)
        dist.all_gather_into_tensor(torch.empty(18, 4), x)
        dist.reduce_scatter_tensor(torch.empty(2, 4), x)
        dist.broadcast(x, 2)
        if rank < 2:
            (dist.send if rank == 0 else dist.recv)(x, 1 - rank)
        y = torch.ones(6, 4, requires_grad=True)
        compat.all_gather_with_grad(y, 0, dist.group.WORLD).sum().backward()
        sent = [[1, 2, 3], [0, 2, 4], [5, 1, 0]]
        compat.all_to_all_with_grad(y, dist.group.WORLD, sent[rank], [row[rank] for row in sent]).sum().backward()
        dist.all_reduce(x, group=dist.new_group([rank], use_local_synchronization=True))
    return [(one.collective, int(one.bytes)) for one in counter.sent]


def test_the_counter_knows_what_operations_send():
    rows = 16  # bytes of a row of four fp32
    ranks = run_world(known_operations, 3)
    for rank, found in enumerate(ranks):
        messages = [("send", 6 * rows)] if rank == 0 else []
        assert found == [
            ("all_reduce", 2 * 4 * rows),
            ("all_gather", 2 * 6 * rows),
            ("reduce_scatter", 4 * rows),
            ("broadcast", 6 * rows if rank == 2 else 0),
            *messages,
            ("all_gather", 2 * 6 * rows),
            ("reduce_scatter", 2 * 6 * rows),
            ("all_to_all", (5, 4, 6)[rank] * rows),
            ("all_to_all", (5, 3, 7)[rank] * rows),
        ]
