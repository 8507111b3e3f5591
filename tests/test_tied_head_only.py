"""Checkpoints of tied models that store the shared matrix as ``lm_head.weight`` alone, or twice: transformers decides
what is right."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from archon_core import assemble, parse_layout
from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import OutputRequest
from archon_core.errors import WeightsError
from archon_engine.checkpoint.conversion import convert_to_dcp, convert_to_hf
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_rollout.text_generation import TextGenerator
from archon_testing.worlds import run_world

EMBEDDING, HEAD, WEIGHTS = "model.embed_tokens.weight", "lm_head.weight", "model.safetensors"
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 0,
}
FAMILIES = {"qwen3": None, "gemma": "hf"}
"""Model type -> the model spec that is chosen by name."""
SEQUENCE = [5, 17, 2, 90, 44, 44, 8]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Per family a folder whose file stores the head alone."""
    root = tmp_path_factory.mktemp("tied")
    for family in FAMILIES:
        torch.manual_seed(3)
        config = AutoConfig.for_model(family, tie_word_embeddings=True, head_dim=8, **SIZES)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(root / family)
        change(root / family, lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)}))
    return root


def change(folder, edit):
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def engine_of(folder, family, layout="d1", *, critic=False):
    config = ArchonEngineConfig(
        path=str(folder),
        dtype="float32",
        is_critic=critic,
        optimizer=None,
        archon=ArchonOptions(model=FAMILIES[family]),
    )
    engine = assemble(config, role="actor", layout=parse_layout(f"archon:{layout}"), seed=1, total_steps=None)
    engine.initialize()
    return engine


def logits(engine):
    ranks = engine.data_ranks
    batch = Batch.from_sequences([SEQUENCE] * ranks.size)
    return engine.forward_batch(batch.select([ranks.rank]), OutputRequest(("logits",)))["logits"]


def logits_of_transformers(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([SEQUENCE])).logits[0]


def logits_per_layout(folders):
    found = {}
    for family in FAMILIES:
        for layout in ("d2", "t2", "p2"):
            engine = engine_of(folders / family, family, layout)
            found[family, layout] = logits(engine)
            if layout == "p2":
                engine.save(folders / f"{family}-saved", "hf")
    return found


def test_the_matrix_is_read_from_the_head_on_every_layout_and_saved_as_the_embedding(folders):
    on_ranks = run_world(logits_per_layout, 2, (folders,))
    for family in FAMILIES:
        expected = logits_of_transformers(folders / family)
        torch.testing.assert_close(logits(engine_of(folders / family, family)), expected, rtol=0, atol=1e-5)
        for layout in ("d2", "t2", "p2"):
            for found in on_ranks:
                torch.testing.assert_close(found[family, layout], expected, rtol=0, atol=1e-5, msg=(family, layout))
        saved, stored = (load_file(folders / name / WEIGHTS) for name in (f"{family}-saved", family))
        assert HEAD not in saved
        assert torch.equal(saved[EMBEDDING], stored[HEAD])


@pytest.mark.parametrize("family", FAMILIES)
def test_converting_finds_the_matrix_under_either_name(folders, tmp_path, family):
    convert_to_dcp(folders / family, tmp_path / "dcp", run_as=FAMILIES[family])
    convert_to_hf(tmp_path / "dcp", tmp_path / "hf")
    assert torch.equal(load_file(tmp_path / "hf" / WEIGHTS)[EMBEDDING], load_file(folders / family / WEIGHTS)[HEAD])
    torch.testing.assert_close(
        logits_of_transformers(tmp_path / "hf"), logits_of_transformers(folders / family), rtol=0, atol=0
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_critic_takes_its_embedding_from_the_head_that_it_replaces(folders, family):
    critic = engine_of(folders / family, family, critic=True)
    assert torch.equal(critic.parameters["embed.weight"].detach(), load_file(folders / family / WEIGHTS)[HEAD])
    assert [decision.option for decision in critic.decisions if "head" in decision.requested] == ["actor.path"]


def test_a_head_of_an_untied_model_never_becomes_its_embedding(folders, tmp_path):
    folder = shutil.copytree(folders / "qwen3", tmp_path / "untied")
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = False
    config.save_pretrained(folder)
    for critic in (False, True):
        with pytest.raises(WeightsError, match=f"missing     {EMBEDDING}"):
            engine_of(folder, "qwen3", critic=critic)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_equal_copies_load_and_two_different_ones_are_refused_by_all_readers(folders, tmp_path, family):
    folder = shutil.copytree(folders / family, tmp_path / "twice")
    change(folder, lambda tensors: tensors.update({EMBEDDING: tensors[HEAD].clone()}))
    torch.testing.assert_close(logits(engine_of(folder, family)), logits_of_transformers(folder), rtol=0, atol=1e-5)
    convert_to_dcp(folder, tmp_path / "equal", run_as=FAMILIES[family])
    # transformers leaves the two untied then, with a warning: a model whose configuration is wrong.
    change(folder, lambda tensors: tensors[HEAD].add_(1))
    refusal = rf"{HEAD}' differs from '{EMBEDDING}'.*set tie_word_embeddings to false"
    with pytest.raises(WeightsError, match=refusal):
        engine_of(folder, family)
    with pytest.raises(WeightsError, match=refusal):
        convert_to_dcp(folder, tmp_path / "different", run_as=FAMILIES[family])
    assert not (tmp_path / "different").exists()


def test_generation_reads_the_same_matrix(folders, monkeypatch):
    """The tokenizer plays no part in which matrix is read."""

    class Tokenizer:
        eos_token_id = 0

    monkeypatch.setattr("archon_rollout.text_generation.read_tokenizer", lambda _folder: Tokenizer())
    generator = TextGenerator.load(str(folders / "qwen3"), dtype="float32")
    module = generator._engine._trainer.module
    assert torch.equal(module.head.weight.detach(), load_file(folders / "qwen3" / WEIGHTS)[HEAD])
