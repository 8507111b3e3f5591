"""The ``local`` inference engine: generates on the trainer's module and weights, without a server.

A completion is a function of its prompt, the weights, the options and its seed. The rest of the batch matters only
through rounding: matrix products over another number of rows may differ in the last bits. In fp32 that moves a
log-probability by about 1e-6, and changes a token only if a random number, or the gap between the two best tokens,
falls within that distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archon_core.config.rules import broken_rules
from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.rollout import Completion, GenerationRequest, RolloutConfig
from archon_core.errors import ConfigError, TrainingError
from archon_engine.models.staged import pipeline_of
from archon_rollout.decode_weights import transposed_weights
from archon_rollout.generation_loop import GenerationLoop
from archon_rollout.model_limits import model_limits
from archon_rollout.requests import check_requests, samples_of, token_limit
from archon_rollout.routed_experts import join_stages


class LocalEngine:
    """Samples with the trainer's weights; implements ``contracts.rollout.InferenceEngine``.

    Samples beyond ``config.max_batch_size`` wait for a free row.

    Raises:
        ConfigError: ``max_batch_size`` is below 1.
    """

    def __init__(self, config: RolloutConfig, *, trainer: TrainEngine) -> None:
        for name, text in broken_rules(config):
            raise ConfigError(f"rollout.{name}: {text}")
        self._max_batch_size = config.max_batch_size
        self._returns_experts = config.return_routed_experts
        self._trainer = trainer
        self._paused = False
        self._closed = False

    @property
    def version(self) -> int:
        """The version of the trainer's weights."""
        return self._trainer.version

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Completions per request, in the order of its seeds.

        Completions end only at ``config.stop_token_ids`` and ``config.stop``: the caller adds the tokenizer's
        end-of-text token unless ``config.ignore_eos``, and passes ``decode`` with stop texts.

        Collective if the trainer has many ranks: each data rank passes its own requests, possibly none, and ranks that
        work on the same sequences pass the same requests.

        Raises:
            TrainingError: the engine is paused or closed, or the model's logits are not finite.
            ConfigError, DataError, ModelError: a request is invalid; nothing was generated.
            ConfigError: routed experts are requested, but the model has no experts.
        """
        if self._closed:
            raise TrainingError("local engine: generate() was called after close(); create a new engine")
        if self._paused:
            raise TrainingError("local engine: generate() was called while paused; call resume() first")
        module = self._trainer.module
        check_requests(requests, model_limits(module))
        completions = [[Completion((), (), (), "length")] * len(request.seeds) for request in requests]
        # Also without samples: other ranks may generate and need this rank's shard of the weights.
        n_steps = max((token_limit(request) for request in requests), default=0)
        with self._trainer.generating(), transposed_weights(module, n_steps):
            loop = GenerationLoop(
                module,
                device=self._trainer.device,
                max_rows=self._max_batch_size,
                version=lambda: self._trainer.version,
            )
            for index, request in enumerate(requests):
                if samples := samples_of(index, request, records_experts=self._returns_experts):
                    loop.submit(index, request.prompt_ids, samples)
            for sample, completion in loop.run():
                completions[sample.request][sample.number] = completion
        return join_stages(completions, pipeline_of(module)) if self._returns_experts else completions

    def health(self) -> bool:
        """Whether ``generate`` accepts requests."""
        return not (self._paused or self._closed)

    def pause(self) -> None:
        """Refuse requests until ``resume``."""
        self._paused = True

    def resume(self) -> None:
        """Accept requests again."""
        self._paused = False

    def update_weights(self, version: int) -> Mapping[str, float]:
        """Check that the trainer holds ``version``; there is nothing to copy, and there are no metrics.

        Raises:
            TrainingError: it holds another version.
        """
        if version != self._trainer.version:
            raise TrainingError(
                f"local engine: found a request for weights of version {version}, but the trainer holds version "
                f"{self._trainer.version}; the local engine samples with the trainer's current weights only"
            )
        return {}

    def close(self) -> None:
        """Refuse all further requests. The trainer stays open."""
        self._closed = True
