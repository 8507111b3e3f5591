import pytest

from archon_core.errors import ConfigError
from archon_engine.models.tokenizer import read_tokenizer


def test_a_folder_without_a_tokenizer_is_an_error_that_lists_what_it_has(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"found no tokenizer among config.json; .*copy the model's tokenizer.json"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer among config.json, tokenizer.json cannot be read"):
        read_tokenizer(tmp_path)
