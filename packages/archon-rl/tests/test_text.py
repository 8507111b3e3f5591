"""Tokenizers and the encoding of records."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archon_core.errors import ConfigError, DataError
from archon_rl.text_encoding import TextEncoder, supervised_batch
from archon_rl.tokenization import bpe_tokenizer, build_tokenizer, characters_tokenizer, load_tokenizer

TEXTS = ["the cat sat on the mat", "the rat sat on the cat", "a=1, b=2\n"]
BPE = bpe_tokenizer(TEXTS, 300)
CHARACTERS = characters_tokenizer(TEXTS)
RECORD = {"question": "the cat", "answer": "sat"}


def encoder(tokenizer, **options) -> TextEncoder:
    return TextEncoder(tokenizer, "question", "answer", **options)


@settings(max_examples=50)
@given(st.text())
def test_bpe_encodes_any_text_and_decodes_it_to_the_same(text):
    ids = BPE.encode(text, add_special_tokens=False)
    assert BPE.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("text", ["<eos>", "a<pad>b", "<bos><bos>"])
def test_the_name_of_a_special_token_in_a_record_is_text(text):
    ids = BPE.encode(text, add_special_tokens=False)
    assert not set(ids) & set(BPE.all_special_ids)
    assert BPE.decode(ids, skip_special_tokens=True) == text


@given(st.text(alphabet=sorted(set("".join(TEXTS)))))
def test_characters_are_one_token_each(text):
    ids = CHARACTERS.encode(text, add_special_tokens=False)
    assert len(ids) == len(text)
    assert CHARACTERS.decode(ids) == text


@pytest.mark.parametrize("tokenizer", [BPE, CHARACTERS], ids=["bpe", "characters"])
def test_transformers_reads_what_was_saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("the cat\n") == tokenizer.encode("the cat\n")
    assert loaded.decode(loaded.encode("the cat\n"), skip_special_tokens=True) == "the cat\n"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(loaded, name) == getattr(tokenizer, name) is not None


def test_bpe_learns_the_pairs_of_its_texts():
    assert len(BPE.encode("the cat", add_special_tokens=False)) < 5
    assert len(BPE) <= 300


def test_a_vocabulary_without_room_for_all_bytes_is_refused():
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size: found 100; .* at least 260"):
        bpe_tokenizer(TEXTS, 100)


@pytest.mark.parametrize("tokenizer", [BPE, CHARACTERS], ids=["bpe", "characters"])
def test_the_loss_is_on_the_answer_and_the_end_of_text_only(tokenizer):
    batch = supervised_batch(encoder(tokenizer), [RECORD, {"question": "", "answer": "a"}])
    for i, record in enumerate([RECORD, {"question": "", "answer": "a"}]):
        row = batch.select([i])
        trained = row.targets[row.token_fields["loss_mask"]].tolist()
        assert trained[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(trained[:-1]) == record["answer"]
        assert row.input_ids[0] == tokenizer.bos_token_id
        assert (
            tokenizer.decode(row.input_ids.tolist(), skip_special_tokens=True) == record["question"] + record["answer"]
        )


def test_a_character_without_a_token_is_an_error_and_not_an_unknown_token():
    with pytest.raises(DataError, match=r"'the cät': the tokenizer has no token for 'ä', .*tokenizer\.kind=bpe"):
        encoder(CHARACTERS).encode_prompt({"question": "the cät"})


def test_a_chat_template_wraps_the_prompt_unless_it_is_switched_off():
    tokenizer = bpe_tokenizer(TEXTS, 300)
    tokenizer.split_special_tokens = False
    tokenizer.chat_template = "{{ bos_token }}[{{ messages[0]['content'] }}]{% if add_generation_prompt %}>{% endif %}"
    ids = encoder(tokenizer).encode_prompt(RECORD)
    assert tokenizer.decode(ids) == "<bos>[the cat]>"
    assert ids.count(tokenizer.bos_token_id) == 1
    plain = encoder(tokenizer, use_chat_template=False).encode_prompt(RECORD)
    assert tokenizer.decode(plain) == "<bos>the cat"


def configuration(kind: str, *, tokenizer_path=None, path=None, init_from_scratch=False) -> SimpleNamespace:
    return SimpleNamespace(
        tokenizer=SimpleNamespace(kind=kind, vocab_size=300),
        tokenizer_path=tokenizer_path,
        actor=SimpleNamespace(path=path, init_from_scratch=init_from_scratch),
    )


def test_a_pretrained_tokenizer_comes_from_its_own_path_or_the_actors(tmp_path):
    BPE.save_pretrained(tmp_path / "a")
    CHARACTERS.save_pretrained(tmp_path / "b")
    assert len(build_tokenizer(configuration("pretrained", path=tmp_path / "a"), [])) == len(BPE)
    both = configuration("pretrained", path=tmp_path / "a", tokenizer_path=tmp_path / "b")
    assert len(build_tokenizer(both, [])) == len(CHARACTERS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (configuration("pretrained"), r"neither tokenizer_path nor actor\.path"),
        (configuration("pretraind"), r"found 'pretraind'; allowed are pretrained, characters, bpe; did you mean"),
        (configuration("bpe", path="some/model"), r"trained with another tokenizer; set tokenizer\.kind=pretrained"),
    ],
)
def test_a_tokenizer_that_cannot_fit_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        build_tokenizer(config, TEXTS)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"found no tokenizer among no files; .* copy the model's tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path):
    tokenizer = bpe_tokenizer(TEXTS, 300)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no end-of-text token"):
        load_tokenizer(tmp_path)


def test_built_tokenizers_come_from_the_texts():
    assert build_tokenizer(configuration("characters"), TEXTS).get_vocab() == CHARACTERS.get_vocab()
    assert build_tokenizer(configuration("bpe", path="some/model", init_from_scratch=True), TEXTS).get_vocab() == (
        BPE.get_vocab()
    )
