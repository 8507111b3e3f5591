"""The options that archon-rl adds to the configuration. No torch: this module is loaded with every configuration.

Under ``actor`` the names and defaults are those of AReaL's ``PPOActorConfig``; what AReaL has no name for
(aggregation, the KL loss term, the entropy bonus) is marked so in its entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from archon_core.errors import ConfigError, did_you_mean

NORM_LEVELS = ("batch", "group", None)
KL_ESTIMATORS = ("k1", "k2", "k3")
AGGREGATIONS = ("token", "sequence", "constant")
BEHAVE_WEIGHT_MODES = ("token_mask", "token_truncate")
TOKENIZER_KINDS = ("pretrained", "characters", "bpe")


@dataclass
class NormConfig:
    """How values are centred and scaled: ``(x - mean) / (std + eps)``.

    Attributes:
        mean_level: values that share a mean: ``batch``, ``group`` (a prompt's samples), or null for no centring.
        mean_leave1out: the mean of the others of its level, without the value itself.
        std_level: values that share a standard deviation: ``batch``, ``group``, or null for no scaling.
        std_unbiased: divide the squared deviations by n - 1 instead of n.
        eps: added to the standard deviation.
        group_size: samples per prompt; null takes ``gconfig.n_samples``, any other number is an error.
    """

    mean_level: str | None = "batch"
    mean_leave1out: bool = False
    std_level: str | None = "batch"
    std_unbiased: bool = True
    eps: float = 1e-5
    group_size: int | None = None


@dataclass
class PolicyOptions:
    """Policy optimisation (``actor``).

    Attributes:
        ppo_n_minibatches: optimizer steps per rollout batch, each on its own part of it.
        eps_clip: the policy ratio is clipped below at 1 - eps_clip, and above at 1 + eps_clip.
        eps_clip_higher: the upper bound's own distance from 1; null takes ``eps_clip``.
        c_clip: dual clip: a negative advantage's loss is at most c_clip times its size; above 1, null for none.
        reward_norm: normalises the rewards of a batch; null for none. ``grpo`` takes group mean and group
            deviation when both norms are null.
        reward_scaling: rewards become (reward + reward_bias) * reward_scaling.
        reward_bias: added to rewards before they are scaled.
        reward_clip: largest size of a scaled reward.
        overlong_reward_penalty: subtract a penalty that grows linearly over the last ``overlong_tokens`` before
            ``gconfig.max_new_tokens`` and stays constant beyond it (DAPO, eq. 13).
        overlong_tokens: length of the buffer in which the penalty grows.
        overlong_penalty_factor: size of the penalty at and beyond the limit; 1 in DAPO.
        mask_no_eos_with_zero: completions cut off at the length limit are not trained on. Their rewards still
            count in the statistics of their group.
        dynamic_sampling: groups whose rewards are all equal leave the batch: relative to the group they teach nothing.
            No other prompts are drawn in their place.
        discount: weight of a reward one token later.
        gae_lambda: decay of generalised advantage estimation; without a critic it multiplies ``discount``.
        adv_norm: normalises the advantages of all trained tokens of a batch; null for none.
        kl_ctl: weight of the KL penalty that is subtracted from every token's reward. Needs ``ref``.
        kl_estimator: ``k1``, ``k2`` or ``k3``, for that penalty.
        recompute_logprob: the trainer's log-probabilities replace those of the rollout.
        use_decoupled_loss: clip against the trainer's log-probabilities at the start of the step, and weight by
            their ratio to the rollout's.
        behave_imp_weight_cap: limit of that ratio; null for none.
        behave_imp_weight_mode: above the limit, ``token_mask`` drops the token from the loss (its weight in the
            mean stays), ``token_truncate`` sets the ratio to the limit.
        loss_aggregation: ``token`` (mean over tokens, DAPO), ``sequence`` (mean over sequences of their means,
            GRPO) or ``constant`` (sum over sequences times ``gconfig.max_new_tokens``, Dr.GRPO). Archon's own.
        kl_loss_coef: weight of the KL to the reference as a term of the loss. Needs ``ref``. Archon's own.
        kl_loss_estimator: for that term; its expected gradient is that of KL(policy || reference) with ``k2``, of
            KL(reference || policy) with ``k3``, and 0 with ``k1``, which works only in the reward. Archon's own.
        entropy_coef: weight of the entropy bonus. Archon's own.
    """

    ppo_n_minibatches: int = 4
    eps_clip: float = 0.2
    eps_clip_higher: float | None = None
    c_clip: float | None = None
    reward_norm: NormConfig | None = None
    reward_scaling: float = 1.0
    reward_bias: float = 0.0
    reward_clip: float = 20.0
    overlong_reward_penalty: bool = False
    overlong_tokens: int | None = None
    overlong_penalty_factor: float | None = None
    mask_no_eos_with_zero: bool = False
    dynamic_sampling: bool = False
    discount: float = 1.0
    gae_lambda: float = 1.0
    adv_norm: NormConfig | None = None
    kl_ctl: float = 0.1
    kl_estimator: str = "k1"
    recompute_logprob: bool = False
    use_decoupled_loss: bool = False
    behave_imp_weight_cap: float | None = 5.0
    behave_imp_weight_mode: str = "token_mask"
    loss_aggregation: str = "token"
    kl_loss_coef: float = 0.0
    kl_loss_estimator: str = "k3"
    entropy_coef: float = 0.0


@dataclass
class WarmStartOptions:
    """A short supervised start before reinforcement learning (``warm_start``), for models that cannot do the task
    at all. It has its own optimizer; reinforcement learning, and ``ref`` when it has no checkpoint of its own,
    start from its weights.

    Attributes:
        steps: supervised steps; 0 for none.
        lr: peak learning rate; it rises over the first tenth of the steps and then falls linearly to 0.
        batch_size: records per step; null takes ``data.batch_size``.
    """

    steps: int = 0
    lr: float = 1e-3
    batch_size: int | None = None


@dataclass
class ArithmeticOptions:
    """Size of the procedural arithmetic task (``data.arithmetic``): all problems ``a op b``.

    Attributes:
        max_operand: operands run from 0 to this number.
        operators: any of ``+``, ``-`` and ``*``, as one string.
        zero_pad: write operands, and results, with leading zeros to one width, as ``07+35=042``.
    """

    max_operand: int = 99
    operators: str = "+"
    zero_pad: bool = False


@dataclass
class HuggingFaceOptions:
    """A data set of Hugging Face ``datasets`` (``data.hf``); ``data.path`` is its id or folder.

    Attributes:
        name: configuration of the data set, such as ``main``.
        split: split to train on.
        validation_split: held-out split, of ``data.validation_path`` when that is given; null takes
            ``data.validation_size`` records off ``split``.
    """

    name: str | None = None
    split: str = "train"
    validation_split: str | None = None


@dataclass
class TokenizerOptions:
    """How text becomes tokens (``tokenizer``).

    Attributes:
        use_chat_template: wrap each prompt as a user's message when the tokenizer has a chat template.
    """

    use_chat_template: bool = True


def check_choice(option: str, value: str | None, allowed: Sequence[str | None]) -> None:
    """Raise ``ConfigError`` when ``value`` is not one of ``allowed``."""
    if value not in allowed:
        names = ", ".join("null" if a is None else a for a in allowed)
        hint = did_you_mean(str(value), [a for a in allowed if a])
        raise ConfigError(f"{option}: found {value!r}; allowed are {names}{hint}")
