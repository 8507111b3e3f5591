"""Text generation with the model and tokenizer of a checkpoint folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from archon_core import assemble
from archon_core.contracts.rollout import (
    Completion,
    GenerationConfig,
    GenerationRequest,
    InferenceEngine,
    RolloutConfig,
)
from archon_core.errors import ConfigError, DataError
from archon_core.models.end_tokens import EndTokens, end_tokens, folder_ends
from archon_core.seeding import derive_seed
from archon_engine.models.hf_config import checkpoint_folder
from archon_engine.models.text import decode_literally, encode_texts, render_chat
from archon_engine.models.tokenizer import read_tokenizer
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_rollout.local_engine import LocalEngine
from archon_rollout.model_limits import ModelLimits, model_limits
from archon_rollout.requests import check_options
from archon_rollout.stop_texts import stop_suffix

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextCompletion:
    """A completion and its text, without special tokens and without the stop text that ended it."""

    text: str
    completion: Completion


class TextGenerator:
    """A model, its tokenizer and a local engine.

    Args:
        engine: the inference engine.
        tokenizer: a ``transformers`` tokenizer.
        limits: of the model.
        ends: the tokens that end a completion, in addition to ``stop_token_ids``.
    """

    def __init__(self, engine: InferenceEngine, tokenizer: Any, limits: ModelLimits, ends: EndTokens) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._limits = limits
        self.ends = ends

    @classmethod
    def load(
        cls, model: str, *, max_batch_size: int = 256, dtype: str | None = None, run_as: str | None = None
    ) -> TextGenerator:
        """Load a checkpoint folder or hub id.

        Args:
            model: the folder or hub id.
            max_batch_size: largest number of sequences to decode at once.
            dtype: compute dtype; ``None`` for the device's default.
            run_as: name of the model spec to use; ``None`` for the one of its model type.

        Raises:
            ModelError: the folder or its configuration is missing, the model cannot generate, or its
                ``generation_config.json`` is invalid.
            UnknownNameError: no installed plugin serves the model type.
            ConfigError: there is no tokenizer.
            WeightsError: the weights do not fit the configuration.
        """
        folder = checkpoint_folder(model)
        tokenizer = read_tokenizer(folder)
        ends = end_tokens(tokenizer.eos_token_id, folder_ends(folder))
        options = ArchonOptions(model=run_as)
        config = ArchonEngineConfig(path=str(folder), dtype=dtype, optimizer=None, archon=options)
        trainer = assemble(config, role="rollout", layout="archon:d1")
        trainer.initialize()
        for decision in trainer.decisions:
            if decision.option == "rollout.path":
                logger.warning("%s: %s", decision.effective, decision.reason)
        engine = LocalEngine(RolloutConfig(max_batch_size=max_batch_size), trainer=trainer)
        return cls(engine, tokenizer, model_limits(trainer.module), ends)

    def complete(
        self, prompts: Sequence[str], options: GenerationConfig, *, seed: int, chat: bool | None = None
    ) -> list[list[TextCompletion]]:
        """``options.n_samples`` completions per prompt, limited to the model's positions.

        Args:
            seed: random seed; all draws depend on it and on the numbers of the prompt and the sample.
            chat: format prompts as user messages; ``None`` to do so if the tokenizer has a chat template, as in
                training.

        Raises:
            ConfigError, DataError, ModelError: see ``requests.check_requests``.
        """
        check_options(options)
        reach = [options.max_tokens, self._limits.max_positions, self._limits.length_dependent_above]
        own = () if options.ignore_eos else self.ends.own
        options = replace(
            options,
            stop_token_ids=list(dict.fromkeys((*own, *options.stop_token_ids))),
            max_tokens=min((limit for limit in reach if limit is not None), default=None),
        )
        requests = [
            GenerationRequest(
                self._encode(prompt, chat),
                options,
                tuple(derive_seed(seed, "generate", number, sample) for sample in range(options.n_samples)),
                partial(decode_literally, self._tokenizer),
            )
            for number, prompt in enumerate(prompts)
        ]
        return [
            [TextCompletion(self._text(completion, options), completion) for completion in completions]
            for completions in self._engine.generate(requests)
        ]

    def _encode(self, prompt: str, chat: bool | None) -> tuple[int, ...]:
        template = self._tokenizer.chat_template
        if chat and template is None:
            raise ConfigError(
                "--chat: found a tokenizer without a chat template; remove --chat to complete the prompt as it is"
            )
        fix = "remove them from the prompt"
        if chat or (chat is None and template is not None):
            text = render_chat(
                self._tokenizer,
                [{"role": "user", "content": prompt}],
                generation_prompt=True,
                fix="add --no-chat to complete the prompt as it is",
            )
            # A chat template writes the special tokens itself.
            [ids] = encode_texts(self._tokenizer, [text], add_special_tokens=False, fix=fix)
        else:
            [ids] = encode_texts(self._tokenizer, [prompt], add_special_tokens=True, fix=fix)
        if not ids:
            raise DataError(f"prompt {prompt!r}: found 0 tokens; allowed is at least 1; write some text")
        return ids

    def _text(self, completion: Completion, options: GenerationConfig) -> str:
        text = self._tokenizer.decode(list(completion.token_ids), skip_special_tokens=True)
        decode = partial(decode_literally, self._tokenizer)
        # Ends in special tokens, if the stop text has any, are gone already.
        return text.removesuffix(stop_suffix(completion.token_ids, options.stop, decode, options.min_new_tokens) or "")
