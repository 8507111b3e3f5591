"""The options of preference training. Imports no torch: every configuration loads this module."""

from __future__ import annotations

from dataclasses import dataclass

from archon_core.config.rules import number, one_of, option


@dataclass
class DPOOptions:
    """Direct preference optimisation (``actor``).

    Attributes:
        beta: strength of the tie to the reference; tau in the paper of IPO.
        loss_type: loss of a pair: ``sigmoid`` (DPO) or ``ipo``.
        ipo_logprobs: with ``ipo``, the log-probability of an answer is the ``mean`` over its tokens (TRL, AReaL), or
            their ``sum`` (the paper). Not in AReaL.
    """

    beta: float = option(0.1, number(above=0))
    loss_type: str = option("sigmoid", one_of("sigmoid", "ipo"))
    ipo_logprobs: str = option("mean", one_of("mean", "sum"))


@dataclass
class PreferenceDataOptions:
    """Fields of preferences (``data``). A record has a prompt (``data.prompt_key``) and two answers. Without the field
    of the prompt, the answers are two whole dialogues that begin with the same prompt, as in HH-RLHF.

    Attributes:
        chosen_key: field of the better answer: text, a number, or a list of messages. Dots address nested objects.
        rejected_key: field of the worse answer, likewise.
        equal_pairs: what to do with records whose two answers are equal: ``error`` stops before the first step,
            ``drop`` leaves them out and records a decision.
    """

    chosen_key: str = "chosen"
    rejected_key: str = "rejected"
    equal_pairs: str = option("error", one_of("error", "drop"))
