"""A model that receives whole Hugging Face tensors holds what their sender holds, also in another sharding."""

import pytest
import torch

from archon_core import assemble, registry
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.spec import load_target
from archon_core.errors import WeightsError
from archon_engine.parallel.shards import whole_values
from archon_testing.worlds import run_world


def make_engine(model, *, seed=1, layout="archon:d1", **changes):
    config = {**load_target(registry().get("model", model).tiny_config)(), **changes}
    engine = assemble(EngineConfig(model_config=config, dtype="float32", optimizer=None), layout=layout, seed=seed)
    engine.initialize()
    return engine


def published(engine) -> dict[str, torch.Tensor]:
    return {
        name: values.clone() for bucket in engine.weight_buckets(2**40, None) for name, values in bucket.tensors.items()
    }


@pytest.mark.parametrize(
    ("model", "changes"), [("qwen2", {}), ("qwen3", {"tie_word_embeddings": True}), ("qwen3_moe", {})]
)
def test_received_tensors_are_those_of_the_sender_in_any_order(model, changes):
    sender, receiver = (make_engine(model, seed=seed, **changes) for seed in (1, 2))
    sent, received = published(sender), receiver.received_weights
    assert sent.keys() == received.shapes.keys()
    for name in reversed(sent):
        received.put(name, sent[name])
        assert torch.equal(received.whole(name, torch.float32), sent[name])
    for name, parameter in sender.parameters.items():
        assert torch.equal(receiver.parameters[name], parameter)
    other = make_engine(model, seed=3, **changes)
    for name in sent:
        other.received_weights.take_over(name, received)
    assert all(torch.equal(other.parameters[name], parameter) for name, parameter in sender.parameters.items())


def receive_on_tensor_ranks(sent):
    receiver = make_engine("qwen3", seed=2, layout="archon:t2")
    for name, values in sent.items():
        receiver.received_weights.put(name, values)
    parts = [receiver.received_weights.whole(name, torch.float32) is None for name in sent]
    return {name: whole_values(parameter) for name, parameter in receiver.parameters.items()}, any(parts)


def test_each_rank_takes_its_part_of_a_tensor():
    sender = make_engine("qwen3", seed=1)
    for parameters, has_parts in run_world(receive_on_tensor_ranks, 2, (published(sender),)):
        assert has_parts
        assert all(torch.equal(parameters[name], parameter) for name, parameter in sender.parameters.items())


def test_tensors_of_another_model_are_refused():
    received = make_engine("qwen3").received_weights
    name, shape = next(iter(received.shapes.items()))
    with pytest.raises(WeightsError, match="which the model does not have"):
        received.put("no.such.weight", torch.zeros(2))
    with pytest.raises(WeightsError, match=r"the model has"):
        received.put(name, torch.zeros(shape[0] + 1, *shape[1:]))
