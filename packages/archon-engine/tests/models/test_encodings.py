"""Block formats against transformers' dequantisation and the published formula, whole and in slices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from archon_core.errors import WeightsError
from archon_core.models.box import Box
from archon_core.models.encoded import Encoded, EncodedTensor
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Interleave, Rename
from archon_engine.checkpoint.hf import load_hf_weights
from archon_engine.models import weight_conversion
from archon_engine.models.encodings import BlockFp8, Mxfp4


def random_mxfp4(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Codes of every kind, and exponents from the smallest of bfloat16's to large ones."""
    generator = torch.Generator().manual_seed(seed)
    blocks, scales = Mxfp4().shapes(shape)
    codes = torch.randint(0, 256, blocks, dtype=torch.uint8, generator=generator)
    return codes, torch.randint(1, 240, scales, dtype=torch.uint8, generator=generator)


def read_back(encoding: Mxfp4 | BlockFp8, stored: tuple[Tensor, Tensor], shape: tuple[int, ...], box: Box) -> Tensor:
    tensors = dict(zip("ab", stored, strict=True))
    tensor = EncodedTensor(dict(zip("ab", encoding.shapes(shape), strict=True)), encoding)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == tensor.stored
    return tensor.read(box, lambda name, part: tensors[name][part.slices])


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    step = tuple(draw(st.integers(1, 3)) for _ in shape)
    extent = tuple(draw(st.integers(1, -(-(n - a) // s))) for n, a, s in zip(shape, start, step, strict=True))
    return Box(start, extent, step)


@given(boxes((3, 4, 96)))
@settings(max_examples=60, deadline=None)
def test_a_slice_of_mxfp4_is_the_slice_of_what_transformers_decodes(box: Box) -> None:
    stored = random_mxfp4(3, 4, 96)
    # transformers decodes for its own experts, which are stored transposed.
    expected = convert_moe_packed_tensors(*stored, dtype=torch.float32).mT
    assert torch.equal(read_back(Mxfp4(), stored, (3, 4, 96), box), expected[box.slices])


def test_decoded_mxfp4_is_exact_in_bfloat16() -> None:
    decoded = Mxfp4().decode(random_mxfp4(3, 4, 96), Box.whole((3, 4, 96)))
    assert torch.equal(decoded.bfloat16().float(), decoded)


@given(boxes((9, 7)))
@settings(max_examples=60, deadline=None)
def test_a_slice_of_fp8_blocks_is_the_slice_of_the_product(box: Box) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(9, 7, generator=generator).to(torch.float8_e4m3fn)
    factors = torch.rand(3, 2, generator=generator)
    # The factor of element (i, j) is that of block (i // 4, j // 5).
    expected = torch.stack(
        [torch.stack([values[i, j].float() * factors[i // 4, j // 5] for j in range(7)]) for i in range(9)]
    )
    assert torch.equal(read_back(BlockFp8(4, 5), (values, factors), (9, 7), box), expected[box.slices])


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Parameter(torch.zeros(3, 4, 64)), nn.Parameter(torch.zeros(3, 4, 64))
        self.norm = nn.Parameter(torch.zeros(5))


PLAIN = (Interleave("experts", ("gate", "up"), 1), Rename("norm", "norm"))
FORM = WeightMap((*PLAIN, Encoded("experts", ("experts_blocks", "experts_scales"), Mxfp4())))


@pytest.mark.parametrize("at_once", [1, 600, 2**24])
def test_a_rank_reads_the_blocks_of_its_slice_alone(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_conversion, "DECODED_AT_ONCE", at_once)
    codes, scales = random_mxfp4(3, 8, 64)
    norm = torch.randn(5)
    save_file({"experts_blocks": codes, "experts_scales": scales, "norm": norm}, tmp_path / "model.safetensors")
    module, weights = Experts(), WeightMap(PLAIN, (FORM,)).resolve({"gate": (3, 4, 64), "up": (3, 4, 64), "norm": (5,)})
    whole = load_hf_weights(module, weights, tmp_path)
    expected = convert_moe_packed_tensors(codes, scales, dtype=torch.float32).mT
    assert torch.equal(module.gate, expected[:, ::2])
    assert torch.equal(module.up, expected[:, 1::2])
    assert torch.equal(module.norm, norm)
    assert whole.bytes_read == codes.numel() + scales.numel() + 4 * 5, "each block is read once"

    own = Box((1, 0, 0), (2, 2, 64))  # two experts, half of their rows

    def local(name: str, weight: Tensor):
        return [(weight.detach()[own.slices], own)] if name != "norm" else []

    part = load_hf_weights(Experts(), weights, tmp_path, local_boxes=local)
    assert part.bytes_read == (codes.numel() + scales.numel()) // 3


def test_a_quantised_tensor_without_a_rule_is_refused(tmp_path: Path) -> None:
    save_file(
        {"experts": torch.zeros(3, 8, 64, dtype=torch.uint8), "norm": torch.zeros(5)}, tmp_path / "model.safetensors"
    )
    weights = WeightMap(PLAIN).resolve({"gate": (3, 4, 64), "up": (3, 4, 64), "norm": (5,)})
    with pytest.raises(WeightsError, match="'experts' has type U8"):
        load_hf_weights(Experts(), weights, tmp_path)


def test_codes_of_an_unknown_type_are_refused(tmp_path: Path) -> None:
    codes, scales = random_mxfp4(3, 8, 64)
    stored = {"experts_blocks": codes.to(torch.int32), "experts_scales": scales, "norm": torch.zeros(5)}
    save_file(stored, tmp_path / "model.safetensors")
    weights = FORM.resolve({"gate": (3, 4, 64), "up": (3, 4, 64), "norm": (5,)})
    with pytest.raises(WeightsError, match="'experts_blocks' has type I32"):
        load_hf_weights(Experts(), weights, tmp_path)
