"""Executes the code blocks of docs/moe.md."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from archon_core import registry
from archon_core.contracts.moe import ExpertParallel, MoESettings
from archon_core.contracts.packed import PackedSequences
from archon_core.errors import ConfigError
from archon_core.plugins import ModelSpec
from archon_core.selection import select_experts
from archon_engine.options.archon import ArchonOptions
from archon_testing.worlds import run_world

PAGE = (Path(__file__).parents[3] / "docs/moe.md").read_text(encoding="utf-8")
SETTINGS = MoESettings(8, 4, 4, 2)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the example's package, importable."""
    folder = tmp_path / "gathering_moe"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for file in ("dispatch", "plugin"):
        [code] = re.findall(rf"<!-- example: {file} -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
        (folder / f"{file}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    registry.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "gathering_moe"]:
        del sys.modules[name]


def test_the_traffic_example_holds() -> None:
    [code] = re.findall(r"```python\n(from archon_moe.dispatch.traffic.*?)```", PAGE, flags=re.DOTALL)
    exec(code, {})


def test_the_option_selects_the_example_dispatch(package: Path) -> None:
    from gathering_moe.plugin import archon_moe

    registry.cache_clear()
    [spec] = archon_moe()
    registry().add(spec)
    model = ModelSpec(name="some", target="some:model", needs=("moe",))
    builder = select_experts(model, registry(), asked="gathering").load()(ArchonOptions())
    assert type(builder).__name__ == "GatheringBlocks"
    with pytest.raises(ConfigError, match=r"actor.archon.moe: found none chosen and several installed.*gathering"):
        select_experts(model, registry(), option="actor.archon.moe")


def differences(folder: str) -> list[float]:
    """Differences from one process of outputs, input gradients and this rank's part of the experts' gradients."""
    sys.path.insert(0, folder)
    from gathering_moe.dispatch import GatheringBlocks

    rank, n_tokens = dist.get_rank(), (5, 2)
    own = slice(0, 5) if rank == 0 else slice(5, 7)
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 7, 8, generator=generator, dtype=torch.float64)
    values = [torch.randn(4, *s, generator=generator, dtype=torch.float64) for s in ((8,), (4, 8), (4, 8), (8, 4))]
    found = []
    builder = GatheringBlocks(ArchonOptions())
    place = ExpertParallel(init_device_mesh("cpu", (2, 1), mesh_dim_names=("ep", "etp")), dist.group.WORLD)
    for part, shared in ((slice(0, 7), False), (own, True)):
        with torch.device("meta"):
            block = builder.build(replace(SETTINGS), 0)
        if shared:
            builder.shard(block, place)
        block.to_empty(device="cpu").to(torch.float64)
        for parameter, value in zip(block.parameters(), values, strict=True):
            is_cut = shared and value.ndim == 3
            (parameter.to_local() if is_cut else parameter).data.copy_(value.chunk(2)[rank] if is_cut else value)
        leaf = x[part].clone().requires_grad_()
        y = block(leaf, PackedSequences.from_lengths((leaf.shape[0],)))
        y.backward(grad[part])
        found.append((y.detach(), leaf.grad, block.experts.down_proj.grad))
    (y, dx, ddown), (own_y, own_dx, own_ddown) = found
    pairs = (own_y, y[own]), (own_dx, dx[own]), (own_ddown.to_local(), ddown.chunk(2)[rank])
    assert len(own_y) == n_tokens[rank]
    return [(a - b).abs().max().item() for a, b in pairs]


def test_the_example_gives_the_numbers_of_one_process(package: Path) -> None:
    assert max(max(found) for found in run_world(differences, 2, (str(package),))) < 1e-12
