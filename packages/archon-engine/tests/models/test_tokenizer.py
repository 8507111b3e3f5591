import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from archon_core.errors import ConfigError
from archon_engine.models.tokenizer import read_tokenizer, save_tokenizer


def test_a_folder_without_a_tokenizer_is_an_error_that_lists_what_it_has(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"found no tokenizer among config.json; .*copy the model's tokenizer.json"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cannot read the tokenizer among config.json, tokenizer.json"):
        read_tokenizer(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A saved tokenizer that puts a space before a text, and has one special token beside the end of text."""
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "<turn>": 1, "a": 2}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", additional_special_tokens=["<turn>"], unk_token="<end>"
    )
    save_tokenizer(fast, tmp_path)
    return tmp_path


def test_a_saved_tokenizer_has_the_names_of_transformers_4_and_is_read_by_5(folder):
    entries = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert entries["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert entries["additional_special_tokens"] == ["<turn>"]
    assert "extra_special_tokens" not in entries
    assert entries["add_prefix_space"] is True
    again = read_tokenizer(folder)
    assert sorted(again.all_special_tokens) == ["<end>", "<turn>"]
    assert again.convert_tokens_to_ids("<turn>") == 1


CODE = "open(MARK, 'w').close()\nfrom transformers import PreTrainedTokenizerFast as Custom\n"


@pytest.mark.parametrize("answer", ["y\n", ""])
@pytest.mark.parametrize("known", [True, False])
def test_python_files_of_a_folder_are_never_run_nor_asked_about(folder, answer, known, monkeypatch):
    """By default, transformers asks at a terminal, and runs the file after a yes."""
    mark = folder / "mark"
    (folder / "custom.py").write_text(CODE.replace("MARK", repr(str(mark))), encoding="utf-8")
    file = folder / "tokenizer_config.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    entries |= {"auto_map": {"AutoTokenizer": ["custom.Custom", "custom.Custom"]}}
    if not known:
        entries["tokenizer_class"] = "Custom"
    file.write_text(json.dumps(entries), encoding="utf-8")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or answer)
    if known:
        assert type(read_tokenizer(folder)).__module__.startswith("transformers.")
    else:
        with pytest.raises(ConfigError, match=r"cannot read .*custom code"):
            read_tokenizer(folder)
    assert not asked
    assert not mark.exists()
