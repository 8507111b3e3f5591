"""Traces a model of transformers: builds it without storage, runs it once, and reads its structure from that run.

Nothing about a family is written down here. The run shows the order of the parts, the arguments of attention, the
shape of masks and what happens to logits. Anything that Archon cannot honour is refused before there are weights.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from archon_core.errors import ModelError
from archon_engine import compat
from archon_engine.nn.head import LogitForm
from archon_models_hf.logits import logit_form
from archon_models_hf.masks import describe_mask
from archon_models_hf.names import Names
from archon_models_hf.one_run import Passes, watching
from archon_models_hf.pipeline_plan import no_pipeline
from archon_models_hf.tensor_plan import TensorFacts, read_tensor_plan
from archon_models_hf.traced_attention import AttentionFacts, Recorder, record
from archon_models_hf.transformers_model import ADVICE, build_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

N_TOKENS = 6
_EXAMINING = "archon_examining"


@dataclass(frozen=True)
class Facts:
    """The structure of a traced model.

    Attributes:
        names: names of its parts.
        attention: attention of each layer.
        form: scale and softcap of the head's logits.
        tied: whether the head uses the embedding's weight.
        owners: our names of all modules that own parameters.
        tensor: how tensor parallelism shards it, or the reason why it cannot.
        no_pipeline: the reason why it cannot be split into stages, with a fix; empty if it can.
    """

    names: Names
    attention: tuple[AttentionFacts, ...]
    form: LogitForm
    tied: bool
    owners: tuple[str, ...]
    tensor: TensorFacts
    no_pipeline: str


def examine(config: PreTrainedConfig, *, critic: bool) -> Facts:
    """The facts of a prepared configuration's model.

    Raises:
        ModelError: it is none that ``HfDecoder`` can run, and why.
    """
    where = f"model_type {config.model_type!r}"
    with _quiet(), compat.without_storage(), torch.device("cpu"):
        lm = _build(config, critic=critic)
        base = lm.base_model
        names = _names(lm, config, where)
        layers = getattr(base, names.layers)
        embeds = torch.zeros(1, N_TOKENS, config.hidden_size)
        recorder = Recorder(where)
        recorder.refuse_convolutions(layers)
        for layer in layers:
            layer.register_forward_pre_hook(recorder.enter_layer, with_kwargs=True)
        with watching(base, layers) as passes, _without_experts(base), torch.no_grad():
            last = _run(base, embeds, recorder, where)
        names = _with_norm(names, base, passes, where)
        attention = recorder.by_layer(layers)
        tensor = read_tensor_plan(config, base, names, attention, passes.outputs, passes.takes_tokens_first)
        refusal = no_pipeline(config, base, names, passes, embeds, last)
        owners = [name for name, module in lm.named_modules() if any(True for _ in module.parameters(recurse=False))]
    return Facts(
        names=names,
        attention=attention,
        form=LogitForm() if critic else logit_form(lm, body=names.body, head=names.head),
        tied=_is_tied(lm, config, names, where),
        owners=tuple(dict.fromkeys(names.ours(name) for name in owners)),
        tensor=tensor,
        no_pipeline=refusal,
    )


def _build(config: PreTrainedConfig, *, critic: bool) -> PreTrainedModel:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_EXAMINING, record)
    AttentionMaskInterface.register(_EXAMINING, describe_mask)
    own = copy.deepcopy(config)
    own._attn_implementation = _EXAMINING
    return build_transformers(own, critic=critic)


def _names(lm: PreTrainedModel, config: PreTrainedConfig, where: str) -> Names:
    """The parts' names, all but the norm's and the others', which the run tells."""
    base = lm.base_model
    in_lm, in_base = dict(lm.named_children()), dict(base.named_children())
    body = next((name for name, child in in_lm.items() if child is base), None)
    heads = [name for name, child in in_lm.items() if child is not base and any(True for _ in child.parameters())]
    lists = [
        name
        for name, child in in_base.items()
        if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    embeddings = [name for name, child in in_base.items() if child is base.get_input_embeddings()]
    if body is None or not len(heads) == len(lists) == len(embeddings) == 1:
        raise ModelError(
            f"{where}: found {type(lm).__name__} of {', '.join(in_lm)}, and its base model of {', '.join(in_base)}; "
            f"archon-models-hf runs models of a token embedding, one list of layers, a final norm and a head; "
            f"{ADVICE}"
        )
    head = in_lm[heads[0]]
    if not isinstance(head, nn.Linear) or head.bias is not None:
        what = "a bias" if isinstance(head, nn.Linear) else f"a {type(head).__name__}"
        raise ModelError(
            f"{where}: found {what} in the head {heads[0]} of {type(lm).__name__}; archon-models-hf has linear heads "
            f"without bias; {ADVICE}"
        )
    return Names(body, embeddings[0], lists[0], norm="", head=heads[0])


def _run(base: nn.Module, embeds: torch.Tensor, recorder: Recorder, where: str) -> torch.Tensor:
    """The last hidden states of one pass. A mask of ones, since without one packs would be looked for in positions."""
    try:
        return base(
            inputs_embeds=embeds,
            attention_mask=torch.ones(1, N_TOKENS, dtype=torch.int64),
            position_ids=torch.arange(N_TOKENS).unsqueeze(0),
            use_cache=False,
            packed=recorder,
        ).last_hidden_state
    except ModelError:
        raise
    except Exception as error:  # of any code of transformers
        raise ModelError(
            f"{where}: {type(base).__name__} of transformers could not be examined, so archon-models-hf cannot run it: "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}; {ADVICE}"
        ) from error


def _with_norm(names: Names, base: nn.Module, passes: Passes, where: str) -> Names:
    """``names`` with the norm, the only part with weights that runs after the layers, and with the other parts."""
    children = dict(base.named_children())
    weighted = {name for name, child in children.items() if any(True for _ in child.parameters())}
    after = [name for name in passes.after_layers if name in weighted] or passes.after_layers
    others = [name for name in children if name not in (names.embed, names.layers, *after)]
    stray = [name for name in others if name in weighted and name not in passes.before_layers]
    found = ", ".join([*after, *stray]) or "nothing"
    if passes.n_layer_calls != len(children[names.layers]) or len(after) != 1 or stray:  # type: ignore[arg-type]
        raise ModelError(
            f"{where}: found {passes.n_layer_calls} passes through layers, then {found}, in {type(base).__name__} of "
            "transformers; archon-models-hf runs models whose layers run once each, before one final norm; " + ADVICE
        )
    return Names(names.body, names.embed, names.layers, after[0], names.head, tuple(others))


def _is_tied(lm: PreTrainedModel, config: PreTrainedConfig, names: Names, where: str) -> bool:
    ties = dict(lm.all_tied_weights_keys) if config.tie_word_embeddings else {}
    if ties not in ({}, {f"{names.head}.weight": f"{names.body}.{names.embed}.weight"}):
        raise ModelError(
            f"{where}: found the tied weights {ties}; archon-models-hf ties a head to the embedding and nothing else; "
            f"{ADVICE}"
        )
    return bool(ties)


@contextmanager
def _without_experts(base: nn.Module) -> Iterator[None]:
    """Let stacks of experts return zeros: their tokens depend on values, which a model without storage lacks."""
    stacks = [m for m in base.modules() if any(p.ndim > 2 for p in m.parameters(recurse=False))]
    for stack in stacks:
        stack.forward = _zeros  # type: ignore[method-assign]
    try:
        yield
    finally:
        for stack in stacks:
            del stack.forward


def _zeros(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.zeros_like(hidden_states)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's logs of operations that fail without storage: the error suffices."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
