"""The table of known models, and the ways to name a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archon_core.errors import ConfigError, ModelError
from archon_plan.models import KNOWN, find_model, known_models, short_names

ENTRIES = {"model_type": "qwen3", "hidden_size": 64}


def test_a_short_name_and_a_hub_id_name_the_same_model_in_any_case() -> None:
    by_name, by_id = find_model("qwen3-8b"), find_model("Qwen/Qwen3-8B")
    assert by_name.entries == by_id.entries
    assert by_name.source == KNOWN
    assert by_name.model_type == "qwen3"


def test_an_instruction_tuned_model_has_the_sizes_of_its_base() -> None:
    assert find_model("Qwen/Qwen2.5-7B-Instruct").entries == find_model("qwen2.5-7b").entries


def test_every_short_name_is_in_the_table() -> None:
    assert set(short_names()) <= set(known_models())


@pytest.mark.parametrize("name", ["config.json", "."])
def test_a_file_or_its_folder_names_a_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ENTRIES))
    found = find_model(str(tmp_path / name))
    assert found.entries == ENTRIES
    assert found.source == str(tmp_path / "config.json")


def test_a_file_of_any_name_names_a_model(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(ENTRIES))
    assert find_model(str(tmp_path / "mine.json")).entries == ENTRIES


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"--model: found 'qwen3-8'.*did you mean 'qwen3-8b'.*qwen2\.5-72b"):
        find_model("qwen3-8")


def test_an_unknown_hub_id_of_a_file_leads_to_the_option_model() -> None:
    with pytest.raises(ConfigError, match=r"actor\.path: found 'me/mine'.*by --model"):
        find_model("me/mine", option="actor.path")


def test_a_folder_without_a_configuration_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json in the folder"):
        find_model(str(tmp_path))


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read it as JSON"):
        find_model(str(tmp_path))


def test_entries_without_a_model_type_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="found model_type None"):
        _ = find_model(str(tmp_path)).model_type
