"""`ModelPluginSuite` says what is wrong with a model: a package of broken ones, Qwen3 with one mistake each."""

import importlib
import sys

import pytest

from archon_core.errors import ArchonError
from archon_core.plugins import registry
from archon_testing import ModelPluginSuite

PLUGIN = """
from archon_core.plugins import ModelSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"
QWEN = "archon_models_qwen."
PARTS = {
    "wrong-role": {"parallel_plan": "broken_models.parts:plan_with_a_wrong_role"},
    "missing-role": {"parallel_plan": "broken_models.parts:plan_without_a_role"},
    "unnamed-attention": {"parallel_plan": "broken_models.parts:plan_without_attention"},
    "missing-rule": {"weight_map": "broken_models.parts:map_without_a_rule"},
    "exchanged-rules": {"weight_map": "broken_models.parts:map_with_exchanged_rules"},
    "stubborn-head": {"weight_map": "broken_models.parts:map_with_a_head_that_must_be_there"},
    "ignored-cache": {"target": "broken_models.parts:IgnoringTheCache"},
    "leaking-positions": {"target": "broken_models.parts:CountingThroughThePack"},
    "forgotten-norm": {"target": "broken_models.parts:WithoutTheLastNorm"},
    "no-tie": {"target": "broken_models.parts:NeverTied"},
    "queries-unsent": {"target": "broken_models.parts:KeepingQueries", "anatomy": QWEN + "anatomy:anatomy"},
}


@hookimpl
def archon_models():
    whole = {
        "target": QWEN + "decoder:QwenDecoder",
        "arguments": QWEN + "arguments:QwenArguments",
        "weight_map": QWEN + "weight_map:weight_map",
        "parallel_plan": QWEN + "parallel_plan:parallel_plan",
        "tiny_config": QWEN + "tiny_config:tiny_qwen3",
    }
    return [
        ModelSpec(
            name=name,
            summary="Qwen3 with a mistake",
            model_types=("qwen3",),
            capabilities=frozenset({"tp", "cp", "pp", "tied", "critic"}),
            **{**whole, **parts},
        )
        for name, parts in PARTS.items()
    ]
"""
PARTS = '''
from dataclasses import replace

import torch

from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Rename
from archon_engine.nn.grouped_attention import GroupedQueryAttention
from archon_models_qwen.decoder import QwenDecoder
from archon_models_qwen.parallel_plan import parallel_plan
from archon_models_qwen.weight_map import weight_map


def plan_with_a_wrong_role(arguments):
    """The projections into the feed-forward block are taken for whole ones; so each rank has all of its outputs."""
    plan = parallel_plan(arguments)
    whole = {f"layers.{{layer}}.mlp.{name}_proj": "head_norm" for name in ("gate", "up", "down")}
    return replace(plan, roles={**plan.roles, **whole})


def plan_without_a_role(arguments):
    plan = parallel_plan(arguments)
    return replace(plan, roles={pattern: role for pattern, role in plan.roles.items() if pattern != "norm"})


def plan_without_attention(arguments):
    return replace(parallel_plan(arguments), attention=())


def map_without_a_rule(arguments):
    return WeightMap(weight_map(arguments).rules[1:])


def map_with_exchanged_rules(arguments):
    hf, ours = "model.layers.{layer}.", "layers.{layer}."
    exchanged = {
        ours + "attention_norm.weight": hf + "post_attention_layernorm.weight",
        ours + "mlp_norm.weight": hf + "input_layernorm.weight",
    }
    return WeightMap(tuple(
        replace(rule, hf=exchanged[rule.ours]) if getattr(rule, "ours", "") in exchanged else rule
        for rule in weight_map(arguments).rules
    ))


def map_with_a_head_that_must_be_there(arguments):
    return WeightMap(tuple(
        replace(rule, init_if_missing=False) if isinstance(rule, Rename) else rule
        for rule in weight_map(arguments).rules
    ))


class IgnoringTheCache(QwenDecoder):
    def forward(self, x, packed):
        return super().forward(x, replace(packed, cache=None))


class CountingThroughThePack(QwenDecoder):
    def forward(self, x, packed):
        if packed.cache is None:
            # Rotation is relative, so a mere offset would not show; one that grows within a sequence does.
            packed = replace(packed, positions=torch.arange(x.shape[0]) ** 2 // 8)
        return super().forward(x, packed)


class WithoutTheLastNorm(QwenDecoder):
    def __init__(self, arguments, stage=None):
        super().__init__(arguments, stage)
        if self.norm is not None:
            self.norm.register_forward_hook(lambda module, args, output: args[0] + 0.0 * output)


class ProjectingFirst(GroupedQueryAttention):
    def forward(self, x, rotation, packed):
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotation.apply(self.q_norm(q)), rotation.apply(self.k_norm(k))
        return self.o_proj(self.core(q, k, v, packed).flatten(-2))


class KeepingQueries(QwenDecoder):
    """Right numbers, but queries wait for keys and values, which the anatomy does not say."""

    def __init__(self, arguments, stage=None):
        super().__init__(arguments, stage)
        for module in self.modules():
            if isinstance(module, GroupedQueryAttention):
                module.__class__ = ProjectingFirst


class NeverTied(QwenDecoder):
    def __init__(self, arguments, stage=None):
        super().__init__(replace(arguments, tied=False), stage)
'''


@pytest.fixture(scope="module", autouse=True)
def broken_models(tmp_path_factory):
    """A package that is installed for these tests, in their process and in the ranks that they start."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "broken_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[archon]\nbroken-models = broken_models.plugin\n")
    package = folder / "broken_models"
    package.mkdir()
    for name, text in (("__init__", ""), ("plugin", PLUGIN), ("parts", PARTS)):
        (package / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    registry.cache_clear()
    yield
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.startswith("broken_models")]:
        del sys.modules[name]
    registry.cache_clear()


def suite_of(name):
    return type("Suite", (ModelPluginSuite,), {"model": name})()


SPEC = "test_the_spec_is_complete_and_its_parts_fit_each_other"
PARITY = "test_outputs_and_gradients_equal_those_of_transformers"
PACKING = "test_packing_changes_no_number"
GENERATION = "test_generation_gives_the_log_probabilities_of_training"
FOUND = {
    "missing-role": (SPEC, ["untied"], r"norm.weight: 0 roles"),
    "unnamed-attention": (SPEC, ["untied"], "declares cp, and"),
    "no-tie": (SPEC, ["tied"], "head.weight is not embed.weight"),
    "missing-rule": (SPEC, ["untied"], "'embed.weight'.* has no rule"),
    "exchanged-rules": (PARITY, ["untied"], "logits differ from transformers' by"),
    "forgotten-norm": (PARITY, ["critic"], "values differ from transformers' by"),
    "leaking-positions": (PACKING, ["untied"], r"sequence 2 \(20 tokens\) in a pack differ"),
    "ignored-cache": (GENERATION, [], "0 of 4 layers use the cache"),
    "queries-unsent": (GENERATION, [], "0 of 4 layers call PackedAttention.send_queries.*=True in 4"),
}


@pytest.mark.parametrize("model", FOUND)
def test_a_broken_model_fails_with_what_to_look_at(model):
    check, arguments, message = FOUND[model]
    with pytest.raises((AssertionError, ArchonError), match=f"(?s){message}"):
        getattr(suite_of(model), check)(*arguments)


def test_a_value_head_that_must_be_in_the_checkpoint_is_found(tmp_path):
    with pytest.raises(AssertionError, match="give the value head's rule init_if_missing=True"):
        suite_of("stubborn-head").test_checkpoints_keep_every_bit_and_load_in_transformers("critic", tmp_path)


def test_rules_that_exchange_tensors_are_found_by_loading_in_transformers(tmp_path):
    with pytest.raises(AssertionError, match="rules of the weight map exchange tensors of equal shape"):
        suite_of("exchanged-rules").test_checkpoints_keep_every_bit_and_load_in_transformers("untied", tmp_path)


@pytest.mark.slow
@pytest.mark.wide
def test_a_wrong_role_is_found_on_two_tensor_ranks(tmp_path_factory):
    with pytest.raises(
        AssertionError, match=r"(?s)archon:t2 does not give.*whose output differs: layers.0.mlp.*2 times"
    ):
        suite_of("wrong-role").test_a_layout_gives_the_numbers_of_one_process("t2", tmp_path_factory)


def test_without_layouts_every_declared_axis_is_verified_on_two_ranks():
    assert sorted(suite_of("wrong-role").declared_layouts()) == ["c2", "d2", "p2", "t2"]


def test_a_suite_without_a_model_says_what_to_write():
    with pytest.raises(TypeError, match="found no `model`"):
        ModelPluginSuite().spec()
