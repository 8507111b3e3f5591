"""The tokens that end completions in a run, by the rule of ``archon_core.models.end_tokens``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archon_core.models.end_tokens import GENERATION_CONFIG, EndTokens, ModelEnds, config_ends, end_tokens, folder_ends
from archon_core.ranks.failing_together import failing_together
from archon_engine.checkpoint.end_tokens_file import write_ends
from archon_engine.models.hf_config import checkpoint_folder
from archon_train.run.context import RunContext


def run_end_tokens(run: RunContext, tokenizer: Any) -> EndTokens:
    """The tokens that end a completion in this run. Collective: the first rank reads the files.

    Raises:
        ModelError: the model's ``generation_config.json`` or ``config.json`` cannot be read.
        ConfigError: an id is outside the vocabulary.
    """
    found, generation = None, run.config.gconfig
    with failing_together(run.ranks):
        if run.ranks.is_first:
            model = _model_ends(run.config)
            found = end_tokens(
                tokenizer.eos_token_id,
                model,
                generation.stop_token_ids,
                ignore_eos=generation.ignore_eos,
            )
            if run.config.eval_gconfig is not None:
                asked = run.config.eval_gconfig.stop_token_ids
                end_tokens(None, model, asked, option="eval_gconfig.stop_token_ids")
    return run.ranks.broadcast(found)


def save_end_tokens(run: RunContext, ends: EndTokens, folder: Path) -> None:
    """Write the tokens next to the run's tokenizer, for ``archon convert`` to copy. For the first rank."""
    if not (folder / GENERATION_CONFIG).is_file():
        write_ends(folder, ends.own, like=_model_folder(run.config))


def _model_ends(config: Any) -> ModelEnds:
    if config.actor.model_config is not None:
        return config_ends(config.actor.model_config, "actor.model_config")
    folder = _model_folder(config)
    return ModelEnds("the model") if folder is None else folder_ends(folder)


def _model_folder(config: Any) -> Path | None:
    """The folder with the model's generation settings, if there is one."""
    if config.actor.model_config is not None or not config.actor.path or _has_other_tokenizer(config):
        return None
    return checkpoint_folder(config.actor.path, weights=False)


def _has_other_tokenizer(config: Any) -> bool:
    """Whether the folder's token ids belong to another tokenizer: a model from scratch may use any tokenizer."""
    own = config.tokenizer.kind == "pretrained" and config.tokenizer_path in (None, config.actor.path)
    return config.actor.init_from_scratch and not own
