"""Checks that a model's anatomy says whether layers hand over their queries first: ``archon plan`` then counts two
exchanges of heads for a layer, and otherwise one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from archon_core.errors import ModelError
from archon_engine.nn.attention import PackedAttention
from archon_testing.model_checks.built import BuiltModel, require


@contextmanager
def sent_queries_checked(model: BuiltModel) -> Iterator[None]:
    """Compare the anatomy with the ``PackedAttention`` modules that a forward pass inside calls."""
    cores = [part for part in model.module.modules() if isinstance(part, PackedAttention)]
    with ExitStack() as stack:
        sent = [stack.enter_context(patch.object(core, "send_queries", wraps=core.send_queries)) for core in cores]
        yield
    planned = _planned(model)
    # Attention that is not ours may hand queries over by other means.
    if planned is None or len(planned) != len(cores):
        return
    found = sum(each.called for each in sent)
    require(
        found == sum(planned),
        f"{found} of {len(cores)} layers call PackedAttention.send_queries, and the anatomy has sends_queries=True in "
        f"{sum(planned)}: correct AttentionAnatomy.sends_queries, or call send_queries before keys and values are "
        "projected",
    )


def _planned(model: BuiltModel) -> list[bool] | None:
    """``sends_queries`` of all layers with softmax attention; ``None`` if the model cannot be planned."""
    if not model.spec.anatomy:
        return None
    try:
        anatomy = model.spec.load_part("anatomy")(model.case.model_config, critic=model.case.critic)
    except ModelError:  # packages that serve any architecture describe some
        return None
    return [layer.attention.sends_queries for layer in anatomy.layers if layer.attention.delta is None]
