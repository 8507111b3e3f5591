"""``reward: model``: a trained reward model as the reward of a run.

The section ``reward_model`` names the checkpoint, such as the export of a run of ``rw``, and its layout. A frozen
engine on the ranks of the actor scores all completions of a batch in one pass. The score is the value at the last
token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from archon_core.contracts.batch import Batch
from archon_core.contracts.decisions import Decision
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.rollout import Completion
from archon_core.errors import ConfigError, DataError
from archon_core.ranks.ranks import DataRanks
from archon_engine.checkpoint.seal import SEAL
from archon_engine.models.hf_config import checkpoint_folder, load_hf_config
from archon_engine.models.text import encode_texts
from archon_rl.fingerprint import Fingerprint
from archon_rl.losses.preference import last_values
from archon_rl.rewards.calls import Outcome
from archon_rl.text_encoding import TextEncoder
from archon_rl.tokenization import load_tokenizer
from archon_rl.trainer.engines import build_model_beside, with_single_sequences
from archon_rl.trainer.fingerprint import tokenizer_fingerprint
from archon_rl.trainer.rollout_batch import Rollout
from archon_rl.trainer.scoring import Scorer, place_of
from archon_rl.trainer.sequence_lengths import longest_sequence
from archon_rl.trainer.sharing import SharedEngine
from archon_train.model_sections import missing_reward_model
from archon_train.run.context import RunContext

CLASSIFIER = "ForSequenceClassification"
"""Suffix of the names of transformers' classes with a value head."""

UNKNOWN_TEXT = "text that the reward model's tokenizer cannot encode"


class RewardModel:
    """A frozen reward model of a run. ``start`` and ``close`` are those of a ``rewards.calls.RewardRunner``.

    Args:
        run: the run.
        role: section of the configuration that names the model.

    Raises:
        ConfigError: the section is missing or names no checkpoint of a reward model.
    """

    def __init__(self, run: RunContext, role: str) -> None:
        section = getattr(run.config, role)
        for text in missing_reward_model(run.config, role):
            raise ConfigError(text)
        self._run, self._role = run, role
        self._section = replace(with_single_sequences(section), is_critic=True, optimizer=None)
        self._engine: SharedEngine | None = None
        self._check_head()

    def start(self) -> Fingerprint:
        """The fingerprint of the checkpoint."""
        folder = checkpoint_folder(self._section.path)
        return Fingerprint.of(_content(folder), f"reward model {folder.name!r}")

    def load(self, encoder: TextEncoder) -> None:
        """Build the engine and the encoder of sequences. Collective.

        Args:
            encoder: of the run's prompts.

        Raises:
            ConfigError: the checkpoint has no tokenizer.
            ArchonError: from the engine.
        """
        self._engine = build_model_beside(self._run, self._section, role=self._role, total_steps=None)
        self._encoder = encoder
        self._tokenizer = load_tokenizer(self._section.path)
        if not self._shares_tokenizer:
            reason = "the tokenizers differ; the policy's token ids mean other texts to the reward model"
            effective = "texts, encoded with the reward model's tokenizer"
            self._run.record([Decision(self._role, "the policy's token ids", effective, reason)])

    def outcomes(self, rollout: Rollout) -> list[tuple[Outcome, ...]]:
        """The score of every completion of the rollout, per record. Collective; every rank has the whole rollout."""
        assert self._engine is not None, "load() comes first"
        sequences = [sequence for group in self._sequences(rollout) for sequence in group]
        scored = [sequence for sequence in sequences if isinstance(sequence, tuple)]
        values: list[float] = []
        if scored:
            batch = Batch.from_sequences(scored)
            outputs = self._engine.forward_batch(batch, OutputRequest(("values",)))
            values = last_values(outputs["values"].to(batch.input_ids.device), batch).tolist()
        scores = iter(values)
        found = iter([self._outcome(s if isinstance(s, Outcome) else next(scores)) for s in sequences])
        return [tuple(next(found) for _ in completions) for completions in rollout.completions]

    def close(self) -> None:
        """Free the engine."""
        if self._engine is not None:
            self._engine.engine.close()

    @cached_property
    def _shares_tokenizer(self) -> bool:
        ours, theirs = tokenizer_fingerprint(self._encoder.tokenizer), tokenizer_fingerprint(self._tokenizer)
        return ours.digest == theirs.digest

    def _check_head(self) -> None:
        config = load_hf_config(self._section.path)
        names = config.architectures or []
        if not any(name.endswith(CLASSIFIER) for name in names) or config.num_labels != 1:
            found = ", ".join(names) or "no architecture"
            labels = f" with {config.num_labels} labels" if any(name.endswith(CLASSIFIER) for name in names) else ""
            raise ConfigError(
                f"{self._role}.path={self._section.path!r}: found a checkpoint of {found}{labels}; allowed are models "
                f"for sequence classification with one label, such as exports of algorithm=rw; train one, or choose "
                "another checkpoint"
            )

    def _sequences(self, rollout: Rollout) -> list[list[tuple[int, ...] | Outcome]]:
        """Token ids of every completion with its prompt, per record, or the reason why it has no score."""
        return [
            [self._sequence(prompt, completion, place_of(rollout, index)) for completion in completions]
            for index, (prompt, completions) in enumerate(zip(self._prompts(rollout), rollout.completions, strict=True))
        ]

    def _prompts(self, rollout: Rollout) -> Sequence[tuple[int, ...] | Outcome]:
        if self._shares_tokenizer:
            return rollout.prompts
        encoder = TextEncoder(self._tokenizer, self._encoder.prompt_key, None, self._encoder.use_chat_template)
        prompts: list[tuple[int, ...] | Outcome] = []
        for index, record in enumerate(rollout.records):
            try:
                prompts.append(encoder.encode_prompt(record))
            except DataError as error:
                prompts.append(Outcome(error=f"{place_of(rollout, index)}: {error}", cause=UNKNOWN_TEXT))
        return prompts

    def _sequence(
        self, prompt: tuple[int, ...] | Outcome, completion: Completion, place: str
    ) -> tuple[int, ...] | Outcome:
        if isinstance(prompt, Outcome):
            return prompt
        ids = tuple(completion.token_ids)
        if not self._shares_tokenizer:
            try:
                [ids] = encode_texts(self._tokenizer, [self._encoder.decode(ids)], add_special_tokens=False)
            except DataError as error:
                return Outcome(error=f"{place}: {error}", cause=UNKNOWN_TEXT)
            # A completion that the length limit cut has no end, in either tokenizer.
            ids += (self._tokenizer.eos_token_id,) * (completion.stop_reason == "stop")
        most = longest_sequence(self._section)
        if most is not None and len(prompt) + len(ids) > most:
            text = (
                f"{place}: found a sequence of {len(prompt) + len(ids)} tokens; the reward model takes at most {most}"
            )
            return Outcome(error=text, cause="sequences that are too long for the reward model")
        return prompt + ids

    def _outcome(self, score: float | Outcome) -> Outcome:
        if isinstance(score, Outcome):
            return score
        if math.isfinite(score):
            return Outcome(score)
        return Outcome(error=f"the reward model's score is {score}", cause="scores that are not finite")


@dataclass
class ModelScorer(Scorer):
    """Scores rollouts with a ``RewardModel``, which all ranks run together."""

    runner: RewardModel

    def _outcomes(self, rollout: Rollout, data_ranks: DataRanks) -> list[tuple[Outcome, ...]]:
        return self.runner.outcomes(rollout)


def _content(folder: Path) -> list[Any]:
    """What identifies a checkpoint: its checksums if it has some, else the sizes of its files; and its config."""
    seal = folder / SEAL
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))
    sizes = [[file.name, file.stat().st_size] for file in files]
    stored = seal.read_text(encoding="utf-8") if seal.is_file() else sizes
    return [(folder / "config.json").read_text(encoding="utf-8"), stored]
