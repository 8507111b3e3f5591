"""Log-probabilities of given tokens, by the forward pass that trainers use."""

from __future__ import annotations

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.loss import OutputRequest
from archon_core.errors import DataError, ModelError, ServerError
from archon_core.serving.scores import Scores, ScoringRequest
from archon_rollout.model_limits import ModelLimits


def score(engine: TrainEngine, request: ScoringRequest, *, version: int) -> Scores:
    """The scores of ``request``, which was checked. Collective over the ranks of the engine.

    Raises:
        ServerError: the model gives no finite numbers.
    """
    batch = Batch.from_sequences(request.sequences)
    outputs = engine.forward_batch(batch, OutputRequest(("logprobs",), request.temperature))
    values = outputs["logprobs"].double().cpu()
    if not values.isfinite().all():
        raise ServerError("score: found log-probabilities that are not finite; check the server's weights")
    rows = values.split(batch.lengths)
    # The last position of a sequence predicts nothing.
    return Scores(tuple(tuple(row[:-1].tolist()) for row in rows), version)


def check_scoring(request: ScoringRequest, limits: ModelLimits) -> None:
    """Raise for the first sequence that the model cannot score.

    Raises:
        DataError: it is empty, or has ids outside the vocabulary; or the temperature is not above 0.
        ModelError: it is too long for the model.
    """
    if not request.temperature > 0:
        raise DataError(f"score: temperature: found {request.temperature}; allowed is a number above 0")
    if not request.sequences:
        raise DataError("score: found an empty list of sequences; allowed is at least 1")
    for index, ids in enumerate(request.sequences):
        if not ids:
            raise DataError(f"score: sequence {index}: found 0 tokens; allowed is at least 1; leave it out")
        outside = next((token for token in ids if not 0 <= token < limits.vocab_size), None)
        if outside is not None:
            raise DataError(
                f"score: sequence {index}: found token id {outside}; allowed are 0 to {limits.vocab_size - 1}; serve a "
                "model with the vocabulary of the sequences"
            )
        if limits.max_positions is not None and len(ids) > limits.max_positions:
            raise ModelError(
                f"score: sequence {index}: found {len(ids)} tokens; allowed are {limits.max_positions} "
                "(max_position_embeddings); shorten the sequences, or serve a model with a longer context"
            )
