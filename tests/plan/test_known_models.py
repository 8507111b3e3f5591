"""The sizes in the table of known models."""

from __future__ import annotations

import pytest

from archon_core.plugins import ModelSpec, registry
from archon_plan.models import find_model, read_anatomy, short_names

# Totals of the published checkpoints, as their hub pages state them (number of elements in the safetensors files).
PUBLISHED = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
}


@pytest.mark.parametrize("name", short_names())
def test_a_known_model_has_as_many_parameters_as_its_published_checkpoint(name: str) -> None:
    model = find_model(name)
    own = {served for spec in registry().all(ModelSpec) for served in spec.model_types}
    # Families without a package of their own run as transformers' modules.
    spec = registry().model_for(model.model_type, None if model.model_type in own else "hf")
    anatomy = read_anatomy(spec, model.entries)
    assert anatomy.n_parameters == PUBLISHED[name]
