"""``HfDecoder``: a transformers language model, split into the parts that the engine shards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from archon_core.contracts.packed import OutputName, PackedSequences
from archon_core.models.stage import Stage
from archon_engine.nn.head import LanguageModelHead, ValueHead
from archon_models_hf.arguments import HfArguments
from archon_models_hf.attention import CORE_ATTENTION, SizedAttention, give_packed_as_mask
from archon_models_hf.constants import constants_of, fill_constants, starting_values
from archon_models_hf.leaves import adapt_embedding, adapt_leaves
from archon_models_hf.names import pattern_of
from archon_models_hf.transformers_model import build_transformers


class HfDecoder(nn.Module):
    """A model of transformers, or one pipeline stage of it. Implements ``archon_core.contracts.model.CausalModule``.

    Its parts are transformers' own, and its forward pass is that of transformers' base model, on one packed sequence
    of [1, T] tokens. Only the head is Archon's, which makes no logits of all tokens.

    Args:
        arguments: the configuration, and the facts found by tracing.
        stage: which part of it; ``None`` for all.

    Attributes:
        embed: token embedding; ``None`` on stages without it.
        layers: the stage's layers by their number in the whole model.
        norm: final norm; ``None`` on stages without a head.
        head: language-model or value head; ``None`` on stages without it.
        other: what else the base model has, such as rotations.
    """

    def __init__(self, arguments: HfArguments, stage: Stage | None = None) -> None:
        super().__init__()
        self.train(False)
        names = arguments.facts.names
        stage = stage or Stage.whole(arguments.n_layers)
        base = build_transformers(copy.deepcopy(arguments.config), critic=arguments.critic).base_model
        layers = getattr(base, names.layers)
        embed: Any = getattr(base, names.embed)
        self.arguments = arguments
        self.embed = embed if stage.has_embed else None
        self.layers = nn.ModuleDict({str(number): layers[number] for number in stage.layers})
        self.norm = getattr(base, names.norm) if stage.has_head else None
        self.head = _head(arguments, embed) if stage.has_head else None
        self.other = nn.ModuleDict({name: getattr(base, name) for name in names.others})
        self._base = (base,)  # not a part of this module, whose parts it calls
        _keep_stage(base, arguments, stage, list(self.layers.values()))
        self._constants = constants_of(self)
        for part in self.modules():
            if values := starting_values(part, base):
                part.initial_values = values
        self._adapt()
        if arguments.facts.tied and self.embed is not None and isinstance(self.head, LanguageModelHead):
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor | dict[OutputName, Tensor]:
        """Token ids [T] on the first stage, hidden states [T, hidden] after it, to the outputs of ``packed.head`` on
        the last stage, hidden states before it."""
        if self.embed is not None:
            x = self.embed(x)
        [base] = self._base
        out = base(
            inputs_embeds=x.unsqueeze(0), position_ids=packed.positions.unsqueeze(0), use_cache=False, packed=packed
        )
        x = out.last_hidden_state.squeeze(0)
        if self.head is None:
            return x
        assert packed.head is not None, "the last stage's forward needs packed.head"
        return self.head(x, packed.head)

    @property
    def max_positions(self) -> int | None:
        """Places that there are learned embeddings for; ``None`` where positions are computed."""
        learned = any(True for _ in self.other.parameters())
        return self.arguments.config.max_position_embeddings if learned else None

    def train(self, mode: bool = True) -> HfDecoder:
        """Stay in evaluation mode: dropout and noise in routers would make numbers depend on the layout."""
        return super().train(False)

    def fill_buffers(self) -> None:
        """Write what transformers keeps in buffers; see ``archon_core.contracts.module``."""
        fill_constants(self._constants, self._base[0])

    def _adapt(self) -> None:
        """Give parts what parallelism needs of them: attention of ours, and weights that may be shards."""
        tensor = self.arguments.facts.tensor
        for number, layer in self.layers.items():
            facts = self.arguments.facts.attention[int(number)]
            attention = SizedAttention(
                number,
                facts.settings,
                n_heads=facts.n_heads,
                n_kv_heads=facts.n_kv_heads,
                gets_own_key_heads=bool(tensor.key_value),
            )
            layer.get_submodule(facts.module).add_module(CORE_ATTENTION, attention)
            if not facts.gets_packed:
                layer.register_forward_pre_hook(give_packed_as_mask, with_kwargs=True)
        for part in self._with_other_weights():
            adapt_leaves(part)
        if self.embed is not None:
            adapt_embedding(self.embed)
        for name, part in self.named_modules():
            pattern = pattern_of(name)
            if pattern in tensor.gathering:
                part.gathers_output = True
            if pattern in tensor.splitting:
                part.splits_input = True

    def _with_other_weights(self) -> Iterator[nn.Module]:
        """Parts that hold parameters, but for embedding and head."""
        yield from (part for part in (self.layers, self.norm, self.other) if part is not None)


def _head(arguments: HfArguments, embed: nn.Embedding) -> LanguageModelHead | ValueHead:
    hidden_size = arguments.config.hidden_size
    if arguments.critic:
        return ValueHead(hidden_size)
    form = arguments.facts.form
    return LanguageModelHead(hidden_size, embed.num_embeddings, scale=form.scale, softcap=form.softcap)


def _keep_stage(base: Any, arguments: HfArguments, stage: Stage, layers: list[nn.Module]) -> None:
    """Leave ``base`` with the parts of a stage, in place.

    Its forward pass goes through a plain list of layers, and looks up kinds of layers by their place in that.
    """
    names = arguments.facts.names
    del base._modules[names.layers]
    base.__dict__[names.layers] = layers
    del base._modules[names.embed]  # embeddings are given
    if not stage.has_head:
        del base._modules[names.norm]
        base.__dict__[names.norm] = _unchanged
    config = base.config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        config.layer_types = [kinds[number] for number in stage.layers]
    config.num_hidden_layers = len(stage.layers)


def _unchanged(hidden_states: Tensor) -> Tensor:
    return hidden_states
