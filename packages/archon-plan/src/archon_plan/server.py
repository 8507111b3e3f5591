"""Speed and capacity of one inference server, from the anatomy of its model.

Decoding reads all weights and the KV cache once per token of every running sequence, so the bandwidth of the memory
limits it until hundreds of sequences run together; prefilling is limited by floating-point operations (Pope et al.,
"Efficiently Scaling Transformer Inference", arXiv:2211.05102, sections 2 and 3).

Legend: t tensor ranks, p pipeline ranks of the server, N sequences decoded together, T tokens in their KV cache.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from archon_core.models.anatomy import AttentionAnatomy, ExpertsAnatomy, LayerAnatomy, ModelAnatomy, WeightShape
from archon_plan.block_sizes import FP32
from archon_plan.devices import Device
from archon_plan.flops import delta_flops

EXPERT = "expert"
"""Role of stacked expert weights in the parallel plan."""


@dataclass(frozen=True)
class Rates:
    """What a device reaches in practice, efficiencies included.

    Attributes:
        memory: bytes of a device.
        bandwidth: bytes per second that it reads from its memory.
        flops: floating-point operations per second in matrix products.
        link_latency: seconds of one message between devices of a server.
        link_bandwidth: bytes per second from one device of a server to the next.
        launch: seconds of host time per operation.
    """

    memory: float
    bandwidth: float
    flops: float
    link_latency: float = 0.0
    link_bandwidth: float = float("inf")
    launch: float = 0.0


def rates_of(device: Device, ranks: int = 1, weight_bytes: int = 2) -> Rates:
    """The rates of a device.

    Args:
        device: of the server.
        ranks: of the server; more than a node has devices exchange over the network.
        weight_bytes: bytes of a weight, which determine the peak of products.
    """
    within = ranks <= device.devices_per_node
    share = device.efficiency
    return Rates(
        memory=device.memory - device.context_bytes,
        bandwidth=device.memory_bandwidth * share.memory,
        flops=device.peak(weight_bytes) * share.dense,
        link_latency=device.node_latency if within else device.network_latency,
        link_bandwidth=device.node_bandwidth * share.node if within else device.network_bandwidth * share.network,
        launch=device.launch,
    )


@dataclass(frozen=True)
class Server:
    """One inference server, or the ranks of the trainer that hold one whole model while they sample.

    Attributes:
        anatomy: of the model that it serves.
        tensor: ranks that share every matrix.
        pipeline: ranks that share the layers.
        max_sequences: largest number of sequences that it decodes together; ``None`` for as many as the KV cache holds.
        memory_share: share of the memory for weights and KV cache (SGLang's ``mem_fraction_static``, vLLM's
            ``gpu_memory_utilization``).
        reserved: bytes on each device that others use, such as a trainer on the same devices.
        weight_bytes: bytes of a weight.
        cache_bytes: bytes of a number in the KV cache.
        launches: operations that the host launches for a decode step; 0 for servers that replay CUDA graphs.
    """

    anatomy: ModelAnatomy
    tensor: int = 1
    pipeline: int = 1
    max_sequences: int | None = None
    memory_share: float = 0.9
    reserved: float = 0.0
    weight_bytes: int = 2
    cache_bytes: int = 2
    launches: float = 0.0

    @property
    def n_devices(self) -> int:
        """Devices of the server."""
        return self.tensor * self.pipeline

    @cached_property
    def weights(self) -> float:
        """Bytes of weights on the fullest device: 2 N / (t p), with the first and last parameters on its ends."""
        layers = self.weight_bytes * sum(_shared(layer.weights, self.tensor) for layer in self.anatomy.layers)
        embed = self.weight_bytes * _shared(self.anatomy.embed, self.tensor)
        last = self.weight_bytes * _shared(self.anatomy.last, self.tensor)
        ends = embed + last if self.pipeline == 1 else max(embed, last + (embed if self.anatomy.tied else 0.0))
        return layers / self.pipeline + ends

    def cached(self, tokens: float, sequences: float) -> float:
        """Bytes of the KV cache on one device: per token, layers / p x kv / t x (head + value size) x bytes per number.

        Tensor ranks beyond the number of KV heads hold copies. Latent attention keeps a vector per token on every rank,
        Gated DeltaNet a matrix per head and sequence, in fp32.

        Args:
            tokens: prompt and completion tokens of all sequences together.
            sequences: number of sequences, which a sliding window limits one by one.
        """
        total = 0.0
        for attention, count in self._kinds.items():
            held = tokens if attention.window is None else min(tokens, sequences * attention.window)
            if attention.delta is not None:
                held = sequences
            total += count * held * self._cache_of(attention)
        return total / self.pipeline

    def capacity(self, rates: Rates) -> float:
        """Bytes for the KV cache on each device; negative if the weights do not fit."""
        return rates.memory * self.memory_share - self.reserved - self.weights

    def most_sequences(self, rates: Rates, context: float) -> int:
        """Sequences of ``context`` tokens each that run together."""
        free = self.capacity(rates)
        fitting = int(free / self.cached(context, 1)) if free > 0 else 0
        return fitting if self.max_sequences is None else min(fitting, self.max_sequences)

    def read_weights(self, sequences: float) -> float:
        """Bytes of weights that one device reads for the next token of every sequence.

        Of n experts, N tokens with k different ones each meet a share of 1 - (1 - k / n)^N, if the router is balanced.
        A pipeline's ranks run p groups of sequences in turn, so a rank reads its weights p times. The embedding is
        looked up, not read.
        """
        group = sequences / self.pipeline
        total = _shared(self.anatomy.last, self.tensor)
        if self.anatomy.tied:
            total += _shared(self.anatomy.embed, self.tensor)
        total += self._dense + sum(weights * _share_met(experts, group) for experts, weights in self._routed.items())
        return self.weight_bytes * total

    def decode_seconds(self, rates: Rates, sequences: float, tokens: float) -> float:
        """Time for the next token of every sequence.

        Args:
            rates: of a device.
            sequences: N, running together.
            tokens: T, in the KV cache for all of them.
        """
        memory = (self.read_weights(sequences) + self.cached(tokens, sequences)) / rates.bandwidth
        products = sequences * self.flops_per_token / (self.n_devices * rates.flops)
        return max(memory, products, self.launches * rates.launch) + self.exchange_seconds(rates, sequences)

    def prefill_seconds(self, rates: Rates, prompts: float, length: float) -> float:
        """Time to compute the keys and values of ``prompts`` texts of ``length`` tokens, and the logits of their last
        ones."""
        flops = length * self.layer_flops + self.head_flops + self.attention_flops(length)
        return prompts * flops / (self.n_devices * rates.flops)

    def exchange_seconds(self, rates: Rates, sequences: float) -> float:
        """Time of the two all-reduces per layer over tensor ranks for one token of every sequence: each
        2 (t - 1) messages of a ring, with 2 (t - 1) / t of the hidden states."""
        if self.tensor == 1:
            return 0.0
        states = sequences * self.anatomy.hidden_size * self.weight_bytes
        messages = 2 * (self.tensor - 1)
        one = messages * rates.link_latency + messages / self.tensor * states / rates.link_bandwidth
        return 2 * len(self.anatomy.layers) * one

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of all matrix products for a token that is decoded: 2 per weight that it meets."""
        return self.layer_flops + self.head_flops

    @cached_property
    def layer_flops(self) -> float:
        """Those of the layers."""
        total = 0.0
        for layer in self.anatomy.layers:
            experts = layer.experts
            met = experts.top_k / experts.n_experts if experts else 0.0
            for weight in layer.weights:
                if len(weight.shape) >= 2:
                    total += weight.size * (met if weight.role == EXPERT else 1.0)
        return 2.0 * total

    @cached_property
    def head_flops(self) -> float:
        """Those of the head, for one position with logits."""
        matrices = [weight for weight in self.anatomy.last if len(weight.shape) >= 2]
        return 2.0 * (_size(matrices) + (_size(self.anatomy.embed) if self.anatomy.tied else 0))

    def attention_flops(self, length: float) -> float:
        """Floating-point operations of causal attention within a text of ``length`` tokens."""
        total = 0.0
        for attention, count in self._kinds.items():
            if attention.delta is not None:
                total += count * length * delta_flops(attention, length)
                continue
            seen = min(length, attention.window or length)
            pairs = length * seen - seen * seen / 2
            total += count * 2 * attention.heads.query * (attention.head_dim + attention.value_dim) * pairs
        return total

    @cached_property
    def _kinds(self) -> Counter[AttentionAnatomy]:
        return Counter(layer.attention for layer in self.anatomy.layers)

    @cached_property
    def _dense(self) -> float:
        """Weights of all layers but routed experts, on one of t ranks."""
        return sum(_shared(_beside_experts(layer), self.tensor) for layer in self.anatomy.layers)

    @cached_property
    def _routed(self) -> dict[ExpertsAnatomy, float]:
        """Kind of experts -> weights of routed experts in all layers, on one of t ranks."""
        total: dict[ExpertsAnatomy, float] = defaultdict(float)
        for layer in self.anatomy.layers:
            if layer.experts is not None:
                total[layer.experts] += _shared(_of_experts(layer), self.tensor)
        return total

    def _cache_of(self, attention: AttentionAnatomy) -> float:
        if attention.delta is not None:
            heads, before = attention.heads, attention.delta.filter_length - 1
            keys, values = heads.key_value * attention.head_dim, heads.query * attention.value_dim
            state = FP32 * values * attention.head_dim
            return (state + before * (2 * keys + values) * self.cache_bytes) / self.tensor
        if attention.latent is not None:
            # Every tensor rank keeps the vectors that its heads are made of, and the rotated part of keys.
            return (attention.latent.key_value_rank + (attention.rotated_dim or 0)) * self.cache_bytes
        heads = -(-attention.heads.key_value // self.tensor)
        return heads * (attention.head_dim + attention.value_dim) * self.cache_bytes


def _share_met(experts: ExpertsAnatomy, tokens: float) -> float:
    return 1.0 - (1.0 - experts.top_k / experts.n_experts) ** tokens


def _of_experts(layer: LayerAnatomy) -> list[WeightShape]:
    return [weight for weight in layer.weights if weight.role == EXPERT]


def _beside_experts(layer: LayerAnatomy) -> list[WeightShape]:
    return [weight for weight in layer.weights if weight.role != EXPERT]


def _size(weights: Iterable[WeightShape]) -> int:
    return sum(weight.size for weight in weights)


def _shared(weights: Iterable[WeightShape], tensor: int) -> float:
    """Elements on one of ``tensor`` ranks: a share of the parameters that tensor ranks shard, and the whole others."""
    return sum(weight.size if weight.tensor_dim is None else weight.size / tensor for weight in weights)
