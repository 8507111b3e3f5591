"""gpt-oss with the experts of archon-moe against transformers: numbers, MXFP4 checkpoints, exports, and its anatomy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Mxfp4Config
from transformers.models.gpt_oss import modeling_gpt_oss as theirs

from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.models.anatomy import ExpertsAnatomy
from archon_core.models.box import Box
from archon_core.models.weight_map import ResolvedMap
from archon_core.plugins import ModelSpec, registry
from archon_engine.checkpoint.conversion import convert_to_dcp, convert_to_hf
from archon_engine.checkpoint.hf import LoadReport, LocalBoxes, load_hf_weights, whole_tensor
from archon_engine.checkpoint.hf_saving import save_hf_weights
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.initialize import build_module
from archon_engine.models.parameter_names import named_weights, weight_shapes
from archon_engine.models.weight_conversion import assemble_hf, copy_from, fill_ours, read_from
from archon_engine.options.archon import ArchonOptions
from archon_engine.parallel.tensor import SHARDED_DIM
from archon_models_gpt_oss.tiny_config import tiny_gpt_oss
from archon_moe.sharding import ETP_DIM

LARGE = json.loads((Path(__file__).parent / "data/gpt-oss-20b.json").read_text())
QUANTISED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}


def spec() -> ModelSpec:
    return registry().get(ModelSpec, "gpt_oss")


def build(config: Any, dtype: torch.dtype) -> tuple[nn.Module, ResolvedMap]:
    model = spec().load()
    arguments = model.arguments.from_hf_config(config, critic=False)
    module = build_module(spec(), arguments, installed=registry()).to(dtype)
    return module, model.weight_map(arguments).resolve(weight_shapes(module))


def hf_model(dtype: torch.dtype) -> nn.Module:
    """transformers' model with random weights that are wide enough for every part to matter."""
    config = load_hf_config(tiny_gpt_oss())
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    generator = torch.Generator().manual_seed(7)
    hf = AutoModelForCausalLM.from_config(config, **options).to(dtype)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.normal_(0, 0.3 if parameter.ndim > 1 else 1.0, generator=generator)
    return hf


def save_quantised(hf: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Save ``hf`` as OpenAI does, with random codes for its experts; returns the tensors of the file."""
    stored = {name: tensor.detach().to(torch.bfloat16) for name, tensor in hf.state_dict().items()}
    generator = torch.Generator().manual_seed(8)
    for name in [name for name in stored if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = stored.pop(name).shape
        codes = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=generator)
        stored[f"{name}_blocks"] = codes
        stored[f"{name}_scales"] = torch.randint(120, 127, codes.shape[:-1], dtype=torch.uint8, generator=generator)
    folder.mkdir()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    entries = {**tiny_gpt_oss(), "architectures": ["GptOssForCausalLM"], "quantization_config": QUANTISED}
    (folder / "config.json").write_text(json.dumps(entries))
    return stored


def load(
    folder: Path, dtype: torch.dtype, local_boxes: LocalBoxes = whole_tensor
) -> tuple[nn.Module, ResolvedMap, LoadReport]:
    module, weights = build(load_hf_config(folder), dtype)
    return module, weights, load_hf_weights(module, weights, folder, local_boxes=local_boxes)


def logits(module: nn.Module, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
    return module(ids, PackedSequences.from_lengths(lengths, head=HeadInputs(outputs=("logits",))))["logits"]


def test_in_float64_it_equals_transformers_but_for_what_that_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and angles of transformers round to fp32 inside; lifted, nothing is left of the difference."""

    def norm(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def rotary(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].double() * self.inv_freq.double()
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling

    monkeypatch.setattr(theirs.GptOssRMSNorm, "forward", norm)
    monkeypatch.setattr(theirs.GptOssRotaryEmbedding, "forward", rotary)
    hf = hf_model(torch.float64)
    ours, weights = build(hf.config, torch.float64)
    with torch.no_grad():
        for name, weight in named_weights(ours).items():
            fill_ours(weight, name, Box.whole(tuple(weight.shape)), weights, read_from(hf.state_dict()))
    lengths = (9, 1, 30, 8)
    ids = torch.randint(0, 128, (sum(lengths),), generator=torch.Generator().manual_seed(3))
    found = logits(ours, ids, lengths)
    expected = torch.cat([hf(sequence[None], use_cache=False).logits[0] for sequence in ids.split(lengths)])
    upstream = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.detach().abs().max()))
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in hf.named_parameters():
        gradient = assemble_hf(name, weights, copy_from(gradients), torch.float64)
        assert (gradient - parameter.grad).abs().max() <= 1e-11 * parameter.grad.abs().max(), name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``quantised``, and in ``plain`` what transformers decodes, which its ``save_pretrained`` loses."""
    folder = tmp_path_factory.mktemp("gpt_oss")
    save_quantised(hf_model(torch.float32), folder / "quantised")
    decoded = AutoModelForCausalLM.from_pretrained(
        folder / "quantised", quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    )
    (folder / "plain").mkdir()
    stored = {name: tensor.contiguous() for name, tensor in decoded.state_dict().items()}
    save_file(stored, folder / "plain" / "model.safetensors", metadata={"format": "pt"})
    (folder / "plain" / "config.json").write_text(
        json.dumps({**tiny_gpt_oss(), "architectures": ["GptOssForCausalLM"]})
    )
    return folder


def test_weights_of_an_mxfp4_checkpoint_are_the_ones_that_transformers_decodes(folders: Path) -> None:
    quantised, _, _ = load(folders / "quantised", torch.bfloat16)
    plain, _, _ = load(folders / "plain", torch.bfloat16)
    expected = named_weights(plain)
    for name, weight in named_weights(quantised).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("form", ["quantised", "plain"])
def test_a_rank_reads_the_experts_that_it_holds_and_no_others(form: str, folders: Path) -> None:
    def share(name: str, weight: Tensor) -> Iterable[tuple[Tensor, Box]]:
        """Experts 2 and 3 of 8, and of these the second half over expert tensor ranks; nothing else."""
        attribute = name.rpartition(".")[2]
        if ".moe.experts." not in name:
            return []
        start, shape = [2, *[0] * (weight.ndim - 1)], [2, *weight.shape[1:]]
        dim = ETP_DIM[attribute]
        start[dim] = shape[dim] = weight.shape[dim] // 2
        box = Box(tuple(start), tuple(shape))
        return [(weight.detach()[box.slices], box)]

    part, _, report = load(folders / form, torch.float32, share)
    whole = named_weights(load(folders / form, torch.float32)[0])
    n_read = 0
    for name, weight in named_weights(part).items():
        for values, box in share(name, weight):
            assert torch.equal(values, whole[name][box.slices]), name
            n_read += box.numel if name.endswith("bias") or form == "plain" else 0
    stored = load_file(folders / form / "model.safetensors")
    of_experts = [t for name, t in stored.items() if name.endswith(("_blocks", "_scales"))]
    # Both halves of a block of 32 inputs of the down projection need the whole block, and gate and up only their rows.
    halves = {
        name: t.numel() for name, t in stored.items() if "gate_up" in name and name.endswith(("_blocks", "_scales"))
    }
    blocks = sum(t.numel() for t in of_experts) - sum(halves.values())
    assert report.bytes_read == 2 * n_read + blocks // 4 + sum(halves.values()) // 8


def test_an_export_is_plain_and_transformers_loads_it(folders: Path, tmp_path: Path) -> None:
    module, weights, _ = load(folders / "quantised", torch.bfloat16)
    config = load_hf_config(folders / "quantised")
    [decision] = spec().load().arguments.from_hf_config(config, critic=False).decisions
    assert (decision.requested, decision.effective) == ("mxfp4", "plain weights")
    save_hf_weights(named_weights(module), weights, tmp_path / "saved", config, dtype=torch.bfloat16)
    saved, plain = (load_file(folder / "model.safetensors") for folder in (tmp_path / "saved", folders / "plain"))
    assert saved.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in saved.items())
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info


def test_an_mxfp4_checkpoint_becomes_a_training_state_and_that_a_plain_folder(folders: Path, tmp_path: Path) -> None:
    convert_to_dcp(folders / "quantised", tmp_path / "state")
    convert_to_hf(tmp_path / "state", tmp_path / "back")
    back, plain = (load_file(folder / "model.safetensors") for folder in (tmp_path / "back", folders / "plain"))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in back.items())


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("case", ["tiny", "20b"])
def test_the_anatomy_is_that_of_the_module(case: str, critic: bool) -> None:
    entries = tiny_gpt_oss() if case == "tiny" else LARGE
    loaded = spec().load()
    arguments = loaded.arguments.from_hf_config(load_hf_config(entries), critic=critic)
    with torch.device("meta"):
        module = loaded.build(arguments, experts=registry().get("moe", "moe").load()(ArchonOptions()))
    plan = loaded.parallel_plan(arguments)
    plan.validate(module)
    found = spec().load_part("anatomy")(entries, critic=critic)
    described = {weight.name: weight for weight in (*found.embed, *found.last)}
    for number, layer in enumerate(found.layers):
        described |= {f"layers.{number}.{weight.name}": weight for weight in layer.weights}
        assert layer.attention.window == arguments.windows[number]
        moe = arguments.moe
        assert layer.experts == ExpertsAnatomy(
            moe.n_experts, moe.top_k, moe.intermediate_size, biases=True, clamped=True
        )
    assert {name: weight.shape for name, weight in described.items()} == {
        name: tuple(parameter.shape) for name, parameter in module.named_parameters()
    }
    for name, weight in described.items():
        owner, _, attribute = name.rpartition(".")
        assert weight.role == plan.role_of(owner), name
        dim = ETP_DIM[attribute] if weight.role == "expert" else SHARDED_DIM.get((weight.role, attribute))
        assert weight.tensor_dim == dim, name
