"""Which tokens end a completion. The oracle for the model's own list is what transformers loads from the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from archon_core.errors import ConfigError, ModelError
from archon_core.models.end_tokens import ModelEnds, config_ends, end_tokens, folder_ends
from archon_engine.checkpoint.end_tokens_file import write_ends

VOCABULARY = 64
ABSENT = object()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes)).save_pretrained(folder)
    return folder


def write(folder: Path, name: str, entries: object) -> Path:
    (folder / name).write_text(entries if isinstance(entries, str) else json.dumps(entries), encoding="utf-8")
    return folder / name


def set_lists(folder: Path, generation: Any, config: Any) -> None:
    """Write ``eos_token_id`` into both files; ABSENT leaves it out, or leaves ``generation_config.json`` out."""
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not ABSENT:
        write(folder, "generation_config.json", generation)
    entries = json.loads((folder / "config.json").read_text())
    entries.pop("eos_token_id", None)
    write(folder, "config.json", entries if config is ABSENT else {**entries, "eos_token_id": config})


@pytest.mark.parametrize(
    ("generation", "config"),
    [
        ({"eos_token_id": 5}, 7),
        ({"eos_token_id": [5, 6, 5]}, 7),
        ({"eos_token_id": None}, 7),
        ({"temperature": 0.7}, [7, 8]),
        (ABSENT, 7),
        (ABSENT, [7, 8]),
        (ABSENT, None),
        (ABSENT, ABSENT),
    ],
)
def test_the_models_list_is_the_one_that_transformers_loads(checkpoint: Path, generation: Any, config: Any) -> None:
    set_lists(checkpoint, generation, config)
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint).generation_config.eos_token_id
    expected = loaded if isinstance(loaded, list) else [] if loaded is None else [loaded]
    assert set(folder_ends(checkpoint).ids) == set(expected)


def test_a_composite_configuration_gives_the_list_of_its_language_model() -> None:
    config = {"vocab_size": None, "text_config": {"vocab_size": 9, "eos_token_id": [1, 2]}}
    assert config_ends(config, "c") == ModelEnds("eos_token_id in c", (1, 2), 9)


def test_the_tokens_are_the_union_of_tokenizer_model_and_options_and_the_decision_names_all_sources() -> None:
    ends = end_tokens(2, ModelEnds("eos_token_id in f", (3, 2), 10), [9, 3])
    assert ends.ids == (2, 3, 9)
    assert ends.own == (2, 3)
    decision = ends.decision()
    assert (decision.option, decision.requested, decision.effective) == (
        "gconfig.stop_token_ids",
        "[9, 3]",
        "[2, 3, 9]",
    )
    assert decision.reason == (
        "2 is the tokenizer's end of text and eos_token_id in f; 3 is eos_token_id in f and gconfig.stop_token_ids; "
        "9 is gconfig.stop_token_ids"
    )


def test_a_tokenizer_without_an_end_of_text_adds_none() -> None:
    assert end_tokens(None, ModelEnds("m", (4,))).ids == (4,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read it as JSON"),
        ("", "cannot read it as JSON"),
        ("[" * 100_000, "cannot read it as JSON"),
        ('{"eos_token_id": 1, "eos_token_id": 2}', "found the name 'eos_token_id' twice"),
        ("[2]", "found a list; allowed is a JSON object"),
        ("null", "found null; allowed is a JSON object"),
        ('{"eos_token_id": "2"}', 'eos_token_id: found "2"; allowed is a token id, a list of token ids, or null'),
        ('{"eos_token_id": 2.0}', "eos_token_id: found 2.0; allowed is a token id"),
        ('{"eos_token_id": true}', "eos_token_id: found true; allowed is a token id"),
        ('{"eos_token_id": [1, null]}', "eos_token_id: found null; allowed is a token id"),
        ('{"eos_token_id": [[1]]}', "eos_token_id: found a list; allowed is a token id"),
        ('{"eos_token_id": {"a": 1}}', "eos_token_id: found an object; allowed is a token id"),
        ('{"eos_token_id": [1, 64]}', "found 64; allowed are the ids of the vocabulary, 0 to 63"),
        ('{"eos_token_id": -1}', "found -1; allowed are the ids of the vocabulary, 0 to 63"),
    ],
)
def test_a_broken_list_is_an_error_with_the_files_path(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "config.json", {"vocab_size": VOCABULARY})
    file = write(tmp_path, "generation_config.json", text)
    with pytest.raises(ModelError) as raised:
        folder_ends(tmp_path)
    assert str(file) in str(raised.value)
    assert message in str(raised.value)


def test_a_generation_config_that_is_no_utf_8_or_no_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    file.write_bytes(b'{"eos_token_id": 2}\xff')
    with pytest.raises(ModelError, match=r"generation_config\.json: cannot read it"):
        folder_ends(tmp_path)
    file.unlink()
    file.symlink_to(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"generation_config\.json: cannot read it"):
        folder_ends(tmp_path)


@pytest.mark.parametrize(
    ("tokenizer_id", "asked", "message"),
    [
        (10, [], "the tokenizer's end of text: found 10; allowed are the ids of the vocabulary, 0 to 9; use the"),
        (1, [3, 10], "gconfig.stop_token_ids: found 10; allowed are the ids of the vocabulary, 0 to 9; leave it out"),
    ],
)
def test_ids_outside_the_models_vocabulary_are_refused(tokenizer_id: int, asked: list[int], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        end_tokens(tokenizer_id, ModelEnds("m", (), 10), asked)
    assert message in str(raised.value)


def test_files_that_say_the_same_are_left_alone_and_others_get_the_list(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"vocab_size": VOCABULARY, "eos_token_id": 3})
    assert not write_ends(tmp_path, (3,))
    assert not (tmp_path / "generation_config.json").exists()
    assert write_ends(tmp_path, (3, 4))
    file = tmp_path / "generation_config.json"
    assert json.loads(file.read_text()) == {"eos_token_id": [3, 4]}
    before = write(tmp_path, file.name, '{"top_k":20,"eos_token_id":[4,3]}').read_bytes()
    assert not write_ends(tmp_path, (3, 4))
    assert file.read_bytes() == before
    assert write_ends(tmp_path, (5,))
    assert json.loads(file.read_text()) == {"top_k": 20, "eos_token_id": 5}
