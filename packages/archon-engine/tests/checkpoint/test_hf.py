"""Loading and saving with a toy module whose weight map has every kind of rule."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, Qwen3Config

from archon_core.errors import WeightsError
from archon_core.models.box import Box
from archon_core.models.weight_map import ResolvedMap, WeightMap
from archon_core.models.weight_rules import Drop, Fuse, Rename, Split, Stack, Tie
from archon_engine.checkpoint.hf import load_hf_weights
from archon_engine.checkpoint.hf_saving import plan_shards, save_hf_weights
from archon_engine.checkpoint.weight_files import INDEX_FILE
from archon_engine.models.initialize import materialize_empty
from archon_engine.models.parameter_names import named_weights, weight_shapes

LAYERS, EXPERTS, HIDDEN, VOCAB = 2, 3, 4, 10
CONFIG = Qwen3Config(hidden_size=HIDDEN)


class Toy(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape).to(dtype))

        self.embed = nn.ParameterDict({"weight": weight(VOCAB, HIDDEN)})
        self.layers = nn.ModuleDict(
            {
                str(i): nn.ParameterDict(
                    {"qkv": weight(8, HIDDEN), "experts": weight(EXPERTS, 6, HIDDEN), "a": weight(3), "b": weight(2)}
                )
                for i in range(LAYERS)
            }
        )
        self.head = nn.ParameterDict({"weight": self.embed["weight"], "value": weight(1, HIDDEN)})


RULES = WeightMap(
    (
        Rename("model.embed.weight", "embed.weight"),
        Tie("head.weight", to="embed.weight", hf="lm_head.weight"),
        Fuse(("model.layers.{i}.q", "model.layers.{i}.k", "model.layers.{i}.v"), "layers.{i}.qkv", sizes=(4, 2, 2)),
        Stack(("model.layers.{i}.{expert}.gate", "model.layers.{i}.{expert}.up"), "layers.{i}.experts"),
        Split("model.layers.{i}.ab", ("layers.{i}.a", "layers.{i}.b")),
        Rename("score.weight", "head.value", init_if_missing=True),
        Drop("model.layers.{i}.inv_freq"),
    )
)
WEIGHTS: ResolvedMap = RULES.resolve(weight_shapes(Toy()))


def save(module: nn.Module, folder: Path, config: PreTrainedConfig = CONFIG, **options) -> Path:
    options.setdefault("dtype", torch.float32)
    save_hf_weights(named_weights(module), WEIGHTS, folder, config, **options)
    return folder


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


@pytest.mark.parametrize("max_shard_bytes", [10**9, 200, 1])
def test_what_was_saved_is_loaded_bit_for_bit(max_shard_bytes: int, tmp_path: Path) -> None:
    module, loaded = Toy(), Toy()
    folder = save(module, tmp_path, max_shard_bytes=max_shard_bytes)
    report = load_hf_weights(loaded, WEIGHTS, folder)
    assert same(module, loaded)
    assert report.initialised == ()
    assert report.bytes_read == 4 * sum(p.numel() for p in module.parameters()), "a tied weight is read once"
    assert (folder / INDEX_FILE).is_file() == (max_shard_bytes < 10**9)


def test_a_meta_module_is_filled_where_it_stands(tmp_path: Path) -> None:
    module = Toy()
    with torch.device("meta"):
        loaded = Toy()
    materialize_empty(loaded, "cpu")
    places = [p.data_ptr() for p in loaded.parameters()]
    load_hf_weights(loaded, WEIGHTS, save(module, tmp_path))
    assert same(module, loaded)
    assert places == [p.data_ptr() for p in loaded.parameters()]


def test_types_are_cast_on_the_way_in_and_out(tmp_path: Path) -> None:
    module, loaded = Toy(torch.bfloat16), Toy(torch.float64)
    folder = save(module, tmp_path / "a", dtype=torch.bfloat16)
    load_hf_weights(loaded, WEIGHTS, folder)
    assert torch.equal(loaded.embed["weight"], module.embed["weight"].double())
    again = save(loaded, tmp_path / "b", dtype=torch.bfloat16)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_missing_unexpected_and_misshapen_keys_are_listed_together(tmp_path: Path) -> None:
    save(Toy(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.k"]
    tensors["model.layers.0.k"] = torch.zeros(3, HIDDEN)
    tensors["model.layers.0.extra"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as refused:
        load_hf_weights(Toy(), WEIGHTS, tmp_path)
    message = str(refused.value)
    assert "missing     model.layers.1.k" in message
    assert "unexpected  model.layers.0.extra" in message
    assert "misshapen   model.layers.0.k: found (3, 4), expected (2, 4)" in message


def test_a_missing_weight_that_may_be_missing_is_reported_and_left_alone(tmp_path: Path) -> None:
    save(Toy(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    module = Toy()
    before = module.head["value"].detach().clone()
    assert load_hf_weights(module, WEIGHTS, tmp_path).initialised == ("head.value",)
    assert torch.equal(module.head["value"], before)


def test_dropped_tensors_and_an_equal_copy_of_a_tied_one_are_accepted(tmp_path: Path) -> None:
    module, loaded = Toy(), Toy()
    save(module, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {"lm_head.weight": tensors["model.embed.weight"].clone(), "model.layers.0.inv_freq": torch.ones(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    load_hf_weights(loaded, WEIGHTS, tmp_path)
    assert same(module, loaded)


def test_a_different_copy_of_a_tied_weight_is_refused(tmp_path: Path) -> None:
    save(Toy(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed.weight"].clone()
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        WeightsError, match=r"'lm_head\.weight' differs from 'model\.embed\.weight'.*tie_word_embeddings"
    ):
        load_hf_weights(Toy(), WEIGHTS, tmp_path)


def test_a_stage_with_only_the_tied_copy_loads_it(tmp_path: Path) -> None:
    module = Toy()
    stage = nn.Module()
    stage.head = nn.ParameterDict({"weight": torch.zeros(VOCAB, HIDDEN), "value": torch.zeros(1, HIDDEN)})
    report = load_hf_weights(stage, WEIGHTS, save(module, tmp_path))
    assert torch.equal(stage.head["weight"], module.embed["weight"])
    assert report.bytes_read == 4 * (VOCAB * HIDDEN + HIDDEN), "other stages' tensors are not read"


@pytest.mark.parametrize("rank", range(3))
def test_a_rank_reads_only_the_slices_that_it_owns(rank: int, tmp_path: Path) -> None:
    whole = Toy()
    save(whole, tmp_path)
    shards: dict[str, tuple[Tensor, Box]] = {}

    def rows(name: str, weight: Tensor) -> Iterable[tuple[Tensor, Box]]:
        # Uneven thirds of the first dim; a rank may own nothing of a tensor.
        size = -(-weight.shape[0] // 3)
        start, stop = min(rank * size, weight.shape[0]), min((rank + 1) * size, weight.shape[0])
        if start == stop:
            return []
        shard = torch.full((stop - start, *weight.shape[1:]), torch.nan)
        box = Box((start, *[0] * (weight.ndim - 1)), tuple(shard.shape))
        shards[name] = (shard, box)
        return [(shard, box)]

    report = load_hf_weights(Toy(), WEIGHTS, tmp_path, local_boxes=rows)
    values = named_weights(whole)
    for name, (shard, box) in shards.items():
        assert torch.equal(shard, values[name][box.slices]), name
    assert report.bytes_read == 4 * sum(box.numel for _, box in shards.values())


def test_saving_through_a_copier_asks_for_each_element_once(tmp_path: Path) -> None:
    module = Toy()
    values, asked = named_weights(module), []

    def copy(name: str, box: Box, destination: Tensor | None) -> None:
        asked.append((name, box.numel))
        if destination is not None:
            destination.copy_(values[name].detach()[box.slices])

    save_hf_weights(copy, WEIGHTS, tmp_path / "a", CONFIG, dtype=torch.float32)
    save(module, tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert sum(n for _, n in asked) == sum(p.numel() for p in module.parameters())
    order = list(asked)
    asked.clear()
    save_hf_weights(copy, WEIGHTS, tmp_path / "c", CONFIG, dtype=torch.float32, write=False)
    assert asked == order, "a rank that does not write takes part in every gather"
    assert not (tmp_path / "c").exists()


def test_the_index_names_the_file_of_every_tensor(tmp_path: Path) -> None:
    save(Toy(), tmp_path, max_shard_bytes=200)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    files = {file.name: load_file(file) for file in tmp_path.glob("*.safetensors")}
    assert index["weight_map"] == {name: file for file, tensors in files.items() for name in tensors}
    total = sum(t.numel() for tensors in files.values() for t in tensors.values())
    assert index["metadata"] == {"total_parameters": total, "total_size": 4 * total}


def test_a_file_holds_no_more_than_the_limit_unless_one_tensor_is_larger() -> None:
    shapes = {"a": (30,), "b": (60,), "c": (500,), "d": (20,), "e": (21,)}
    files = plan_shards(shapes, dict.fromkeys(shapes, torch.float32), max_shard_bytes=400)
    assert sorted(n for names in files.values() for n in names) == list("abcde")
    for names in files.values():
        assert sum(4 * shapes[n][0] for n in names) <= 400 or names == ["c"]


def test_old_weights_are_never_mixed_with_new_ones(tmp_path: Path) -> None:
    save(Toy(), tmp_path)
    with pytest.raises(WeightsError, match=r"found weights already \(model\.safetensors\)"):
        save(Toy(), tmp_path)


def test_tokenizer_and_generation_files_come_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "generation_config.json", "model.safetensors", "README.md"):
        (source / name).write_text(json.dumps({"name": name}))

    class Tokenizer:
        def save_pretrained(self, folder: Path) -> None:
            (Path(folder) / "tokenizer_config.json").write_text('{"eos_token": "written"}')

    folder = save(Toy(), tmp_path / "out", companions_from=source, tokenizer=Tokenizer())
    assert json.loads((folder / "tokenizer.json").read_text()) == {"name": "tokenizer.json"}
    assert (folder / "generation_config.json").is_file()
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"eos_token": "written"}
    assert not (folder / "README.md").exists()


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    save(Toy(), tmp_path, max_shard_bytes=200)
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-4])
    with pytest.raises(WeightsError, match=f"{victim.name}: found no readable"):
        load_hf_weights(Toy(), WEIGHTS, tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save(Toy(), tmp_path, max_shard_bytes=200)
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(WeightsError, match=f"names {victim.name}, not found in the folder"):
        load_hf_weights(Toy(), WEIGHTS, tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(content: str, tmp_path: Path) -> None:
    save(Toy(), tmp_path, max_shard_bytes=200)
    (tmp_path / INDEX_FILE).write_text(content)
    with pytest.raises(WeightsError, match=r"index\.json: found no readable index"):
        load_hf_weights(Toy(), WEIGHTS, tmp_path)


def test_an_index_that_contradicts_its_files_is_refused(tmp_path: Path) -> None:
    save(Toy(), tmp_path, max_shard_bytes=200)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    name = next(n for n, file in index["weight_map"].items() if file == first)
    index["weight_map"][name] = second
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=f"'{name}' in {second}"):
        load_hf_weights(Toy(), WEIGHTS, tmp_path)


def test_a_weight_that_the_index_leaves_out_is_neither_read_nor_drawn_at_random(tmp_path: Path) -> None:
    save(Toy(), tmp_path, max_shard_bytes=200)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    for name in ("model.layers.0.k", "score.weight"):  # one that must be there, one that a checkpoint may lack
        changed = {**index, "weight_map": {k: v for k, v in index["weight_map"].items() if k != name}}
        if index["weight_map"][name] not in changed["weight_map"].values():
            changed["weight_map"]["model.embed.weight"] = index["weight_map"][name]
            victim = tmp_path / index["weight_map"][name]
            save_file({**load_file(victim), "model.embed.weight": torch.zeros(VOCAB, HIDDEN)}, victim)
        (tmp_path / INDEX_FILE).write_text(json.dumps(changed))
        with pytest.raises(WeightsError, match=f"does not name '{name}', which the model has and model-"):
            load_hf_weights(Toy(), WEIGHTS, tmp_path)


def test_a_folder_without_safetensors_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(WeightsError, match=r"found pytorch_model\.bin; .*convert"):
        load_hf_weights(Toy(), WEIGHTS, tmp_path)
    with pytest.raises(WeightsError, match="found nothing"):
        load_hf_weights(Toy(), WEIGHTS, tmp_path / "absent")
