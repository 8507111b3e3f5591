"""LoRA in files, in gradients and in completions: those of PEFT, and of the base model without adapters."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import LossSums, OutputRequest
from archon_core.contracts.moe import MoESettings
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.errors import ConfigError, WeightsError
from archon_core.models.parallel_plan import ParallelPlan
from archon_core.models.weight_map import Rename, Split, WeightMap
from archon_engine.checkpoint.conversion import convert_to_hf
from archon_engine.checkpoint.dcp import SavedState
from archon_lora.adapter import LoraAdapter
from archon_lora.options import LoraOptions
from archon_lora.projections import numbered
from archon_moe.experts import GroupedExperts
from archon_rollout.local_engine import LocalEngine
from archon_testing.worlds import run_world
from lora_engines import CLOSE, LIKE_TRANSFORMERS, LogLikelihoodAndEntropy, batch_of, make_engine, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a base model and the export of adapters trained on it, the engine, and its log-probabilities."""
    folder = tmp_path_factory.mktemp("lora")
    base = make_engine(use_lora=False)
    base.save(folder / "base", "hf")
    base.close()
    engine = make_engine(path=folder / "base")
    train(engine, (0, 1))
    engine.save(folder / "export", "hf")
    logprobs = engine.forward_batch(batch_of(2, engine), OutputRequest())["logprobs"].clone()
    yield folder, engine, logprobs
    engine.close()


def test_only_adapters_are_trained_and_have_optimizer_state(trained):
    folder, engine, _ = trained
    base = load_file(folder / "base" / "model.safetensors")
    for name, parameter in engine.parameters.items():
        assert parameter.requires_grad == (".lora." in name)
        assert parameter.requires_grad or parameter.grad is None
    assert torch.equal(engine.parameters["embed.weight"], base["model.embed_tokens.weight"])
    assert torch.equal(engine.parameters["layers.0.mlp.up_proj.weight"], base["model.layers.0.mlp.up_proj.weight"])
    engine.save(folder / "state", "dcp")
    saved = SavedState.open(folder / "state")
    assert set(saved.weights) == {name for name, p in engine.parameters.items() if p.requires_grad}
    with pytest.raises(WeightsError, match=r"found adapters \(lora\) without the weights of their model"):
        convert_to_hf(folder / "state", folder / "converted")


def test_a_new_adapter_changes_nothing(trained):
    folder, engine, _ = trained
    base, new = make_engine(path=folder / "base", use_lora=False), make_engine(path=folder / "base")
    batch = batch_of(2, engine)
    expected, found = (e.forward_batch(batch, OutputRequest())["logprobs"] for e in (base, new))
    assert torch.equal(found, expected)


def test_merged_weights_and_peft_have_the_engines_log_probabilities_and_gradients(trained):
    peft = pytest.importorskip("peft", reason="the oracle is not installed")
    from transformers import AutoModelForCausalLM

    folder, engine, expected = trained
    batch = batch_of(2, engine)
    merged = AutoModelForCausalLM.from_pretrained(folder / "export", dtype=torch.float64)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float64)
    adapted = peft.PeftModel.from_pretrained(base, folder / "export" / "adapter", is_trainable=True).double()
    for model in (merged, adapted):
        torch.testing.assert_close(log_probabilities(model, batch), expected, rtol=0, atol=LIKE_TRANSFORMERS)

    (-log_probabilities(adapted, batch).sum() / batch.n_tokens).backward()
    oracle = {name.replace(".default", ""): p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    again = make_engine(path=folder / "base", lora_path=str(folder / "export" / "adapter"))
    assert torch.equal(again.forward_batch(batch, OutputRequest())["logprobs"], expected)
    stats = again.train_batch(batch, LogLikelihood())
    clipped = min(1.0, 1.0 / stats.gradient_norm)
    trained_names = [name for name, p in again.parameters.items() if p.requires_grad]
    assert len(trained_names) == len(oracle)
    for name in trained_names:
        [link] = again._running.assembled.plan.adapter_weights.links_of_ours[name]
        torch.testing.assert_close(
            again.parameters[name].grad, oracle[link.hf] * clipped, rtol=LIKE_TRANSFORMERS, atol=LIKE_TRANSFORMERS
        )


def test_peft_and_merged_files_have_the_adapters_of_experts_and_routers(tmp_path):
    peft = pytest.importorskip("peft", reason="the oracle is not installed")
    from transformers import AutoModelForCausalLM

    whole = make_engine(model="sparse", use_lora=False)
    whole.save(tmp_path / "base", "hf")
    engine = make_engine(model="sparse", path=tmp_path / "base", target_modules=["gate", "all-linear"])
    train(engine)
    engine.save(tmp_path / "export", "hf")
    names = load_file(tmp_path / "export/adapter/adapter_model.safetensors")
    assert "base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight" in names
    batch = batch_of(2, engine)
    expected = engine.forward_batch(batch, OutputRequest())["logprobs"]
    options = {"dtype": torch.float64, "experts_implementation": "eager"}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "export", **options)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", **options)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "export" / "adapter").double()
    with torch.no_grad():
        for model in (merged, adapted):
            torch.testing.assert_close(log_probabilities(model, batch), expected, rtol=0, atol=LIKE_TRANSFORMERS)
        with engine.without_adapters():
            plain = engine.forward_batch(batch, OutputRequest())["logprobs"]
        with adapted.disable_adapter():
            torch.testing.assert_close(log_probabilities(adapted, batch), plain, rtol=0, atol=LIKE_TRANSFORMERS)
        assert (plain - expected).abs().max() > 1e-3


def test_experts_that_files_store_fused_stay_without_adapters_unless_they_are_named():
    e = "layers.0.moe.experts"
    rules = (Split("e.gate_up", (f"{e}.gate_proj", f"{e}.up_proj"), dim=1), Rename("e.down", f"{e}.down_proj"))
    shapes = {f"{e}.gate_proj": (2, 4, 8), f"{e}.up_proj": (2, 4, 8), f"{e}.down_proj": (2, 8, 4)}
    fused = WeightMap(rules).resolve(shapes)
    experts = GroupedExperts(MoESettings(8, 4, 2, 1))
    module = nn.ModuleDict(
        {"layers": nn.ModuleDict({"0": nn.ModuleDict({"moe": nn.ModuleDict({"experts": experts})})})}
    )
    plan = ParallelPlan({e: "expert"})
    adapter = LoraAdapter(LoraOptions(use_lora=True), role="actor")
    adapter.attach(module, plan, fused)
    assert experts.lora is None
    assert [d.effective for d in adapter.decisions(role="actor")] == [
        "without experts' gate_proj",
        "without experts' up_proj",
        "without experts' down_proj",
    ]
    with pytest.raises(ConfigError, match=r"found 'gate_proj', which files store as a part of 'e\.gate_up'"):
        LoraAdapter(LoraOptions(use_lora=True, target_modules=["gate_proj"]), role="actor").attach(module, plan, fused)


def test_numbered_experts_are_one_pattern_of_names():
    assert numbered(["l.0.e.0.w", "l.0.e.1.w"]) == "l.0.e.{expert}.w"
    assert numbered(["l.0.e.0.w"]) == "l.0.e.{expert}.w"
    assert numbered(["l.0.e.1.w", "l.0.e.0.w"]) is None
    assert numbered(["a", "b.c"]) is None


class LogLikelihood(LogLikelihoodAndEntropy):
    request = OutputRequest()

    def __call__(self, outputs, micro_batch):
        return LossSums({"token": -outputs["logprobs"].sum()})


def log_probabilities(model, batch):
    """[T] as the engine gives them: 0 at the end of a sequence, whose next token does not exist."""
    parts = []
    for start, stop in zip(batch.offsets, batch.offsets[1:], strict=False):
        ids = batch.input_ids[start:stop]
        logits = model(ids[None]).logits[0].log_softmax(-1)
        parts += [logits[:-1].gather(1, ids[1:, None])[:, 0], logits.new_zeros(1)]
    return torch.cat(parts)


def test_completions_are_sampled_from_the_adapted_model(trained):
    _, engine, _ = trained
    rollout = LocalEngine(RolloutConfig(max_batch_size=3), trainer=engine)
    [[completion]] = rollout.generate(
        [GenerationRequest((1, 7, 20), GenerationConfig(n_samples=1, max_new_tokens=9), (4,))]
    )
    whole = Batch.from_sequences([torch.tensor([1, 7, 20, *completion.token_ids])])
    logprobs = engine.forward_batch(whole, OutputRequest())["logprobs"][2:-1]
    torch.testing.assert_close(torch.tensor(completion.logprobs).double(), logprobs, rtol=1e-6, atol=1e-6)


def test_a_run_continues_from_its_training_state_on_another_layout(trained):
    folder, _, _ = trained
    whole = make_engine(path=folder / "base")
    expected = train(whole)
    start = make_engine(path=folder / "base")
    train(start, (0,))
    start.save(folder / "after one", "dcp")
    for rank in run_world(continue_run, 2, (folder,)):
        for these, those in zip(rank, expected[1:], strict=True):
            assert these == pytest.approx(those, rel=CLOSE)


def continue_run(folder):
    engine = make_engine("t2", path=folder / "base")
    engine.load(folder / "after one", "dcp")
    return train(engine, (1, 2))


def test_another_rank_scale_or_target_than_the_adapters_is_refused_with_all_differences(trained):
    folder, _, _ = trained
    with pytest.raises(WeightsError) as error:
        make_engine(
            path=folder / "base", lora_path=str(folder / "export/adapter"), lora_rank=4, target_modules=["q_proj"]
        )
    assert "r: found 3, the options say 4" in str(error.value)
    assert "unexpected base_model.model.model.layers.0.mlp.up_proj.lora_A.weight" in str(error.value)
    with pytest.raises(WeightsError, match=r"found no adapter_config\.json; give a folder that PEFT or Archon saved"):
        make_engine(path=folder / "base", lora_path=str(folder / "base"))


def test_adapters_that_work_otherwise_are_refused(trained, tmp_path):
    folder, _, _ = trained
    for file in (folder / "export/adapter").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(WeightsError, match="use_dora: found True, which changes the product"):
        make_engine(path=folder / "base", lora_path=str(tmp_path))


def test_targets_are_chosen_by_name():
    engine = make_engine(target_modules=["q_proj", "down_proj"])
    adapted = {name.split(".lora")[0].rpartition(".")[2] for name in engine.parameters if ".lora." in name}
    assert adapted == {"q_proj", "down_proj"}
    with pytest.raises(
        ConfigError, match=r"found 'q_prj'; allowed are down_proj, .* and all-linear; did you mean 'q_proj'"
    ):
        make_engine(target_modules=["q_prj"])


def test_megatrons_names_adapt_the_projections_that_it_fuses():
    engine = make_engine(target_modules=["linear_qkv", "linear_fc2"])
    adapted = {name.split(".lora")[0].rpartition(".")[2] for name in engine.parameters if ".lora." in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "down_proj"}
    [decision] = [d for d in engine.decisions if d.option == "actor.target_modules"]
    assert (decision.requested, decision.effective) == ("linear_qkv", "q_proj, k_proj, v_proj")
