"""Tokenizers: read from a checkpoint, or built from the training data.

Built tokenizers are ``transformers`` fast tokenizers, so ``AutoTokenizer`` reads what ``save_pretrained`` writes. They
start every text with a begin-of-text token: an empty prompt still has a token to condition on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archon_core.config.rules import one_of
from archon_core.errors import ConfigError
from archon_engine.models.hf_config import checkpoint_folder
from archon_engine.models.tokenizer import read_tokenizer
from archon_rl.data_problems import SPECIAL_TOKENS, tokenizer_problems, too_small_vocabulary
from archon_rl.run_problems import refuse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = SPECIAL_TOKENS


def characters_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per character of ``texts``, in code point order."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = sorted(set().union(*(set(text) for text in texts)))
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *characters))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _finish(tokenizer)


def bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on ``texts``; it encodes any text losslessly.

    The vocabulary is smaller than ``vocab_size`` if too few pairs occur twice.

    Raises:
        ConfigError: ``vocab_size`` is too small for all bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    refuse(too_small_vocabulary(vocab_size))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _finish(tokenizer)


def _finish(tokenizer: Any) -> PreTrainedTokenizerFast:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        # "<eos>" inside a record is text, not a special token.
        split_special_tokens=True,
    )


def load_tokenizer(path: str | Path) -> Any:
    """A tokenizer from a folder or hub id.

    Raises:
        ModelError: ``path`` is neither a folder nor a hub id.
        ConfigError: the folder has no tokenizer, or the tokenizer has no end-of-text token.
    """
    tokenizer = read_tokenizer(checkpoint_folder(path, weights=False))
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"tokenizer_path: the tokenizer of {str(path)!r} has no end-of-text token to end answers with; "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def build_tokenizer(config: Any, texts: Iterable[str]) -> Any:
    """The tokenizer of a configuration; ``texts`` is the data to build one from.

    Raises:
        ConfigError: the kind is unknown, ``pretrained`` has no path, or a tokenizer would be built for pretrained
            weights.
    """
    kind = config.tokenizer.kind
    if allowed := one_of("pretrained", "characters", "bpe")(kind):
        raise ConfigError(f"tokenizer.kind: found {kind!r}; allowed are {allowed}")
    refuse(tokenizer_problems(config))
    if kind == "pretrained":
        return load_tokenizer(config.tokenizer_path or config.actor.path)
    if kind == "characters":
        return characters_tokenizer(texts)
    return bpe_tokenizer(texts, config.tokenizer.vocab_size)
