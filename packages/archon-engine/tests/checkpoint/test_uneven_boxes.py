"""Training states of tensors whose parts torch's own planner mistakes for other rows, written and read on ranks."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from archon_core.models.box import chunk_of
from archon_core.ranks.ranks import Ranks
from archon_engine.checkpoint.dcp import TrainingState, load_training_state
from archon_engine.parallel.shards import local_part, whole_values
from archon_testing.worlds import run_world

ROWS = (7, 9, 61, 1)
DATA, TENSOR = 3, 2


def tensor_of(rows: int) -> torch.Tensor:
    return torch.arange(2.0 * rows).view(rows, 2) + 1


def sharded(rows: int, data: int, tensor: int) -> DTensor:
    """Rows as the engine's layout ``d{data}t{tensor}`` cuts them, by FSDP2 itself."""
    mesh = init_device_mesh("cpu", (data, tensor), mesh_dim_names=("dp", "tp"))
    tp = mesh["tp"]
    part = chunk_of(rows, tensor, tp.get_local_rank())
    whole = tensor_of(rows)
    local = DTensor.from_local(
        whole[part.start : part.stop], tp, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
    )
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(local)
    fully_shard(module, mesh=mesh["dp"])
    return module.weight


def round_trip(folder: Path) -> list[str]:
    """Written on d3t2; read on d3t2, d2t3 and d1t6."""
    weights = {str(rows): sharded(rows, DATA, TENSOR) for rows in ROWS}
    gathered = {name: whole_values(weight) for name, weight in weights.items()}
    problems = [f"{name}: gathered wrong" for name, whole in gathered.items() if not whole.equal(tensor_of(int(name)))]
    state = {name: {"exp_avg": weight.detach() * 2} for name, weight in weights.items()}
    TrainingState.of(weights, state, {"version": 1}, {}).write(folder, Ranks.of_process_group())
    dist.barrier()
    for data, tensor in ((3, 2), (2, 3), (1, 6)):
        others = {str(rows): sharded(rows, data, tensor) for rows in ROWS}
        for other in others.values():
            local_part(other)[0].zero_()
        loaded, _, _ = load_training_state(folder, others)
        for name, other in others.items():
            whole, first = tensor_of(int(name)), loaded[name]["exp_avg"]
            if not whole_values(other).equal(whole) or not whole_values(first).equal(whole * 2):
                problems.append(f"{name} on d{data}t{tensor}")
    return problems


def test_parts_of_unequal_size_are_written_and_read_where_they_belong(tmp_path: Path) -> None:
    assert run_world(round_trip, DATA * TENSOR, (tmp_path / "state",)) == [[]] * 6
