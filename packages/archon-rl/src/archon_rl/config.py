"""The options that archon-rl adds to the configuration. Imports no torch: every configuration loads this module.

Names and defaults under ``actor`` follow AReaL's ``PPOActorConfig``; options that AReaL does not have (aggregation, the
KL loss term, the entropy bonus) say so in their description.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from archon_core.config.rules import NOT_NEGATIVE, POSITIVE, SHARE, number, one_of, option
from archon_rl.option_checks import gae_lambda_problems, normalisation_problems, policy_loss_problems

NORM_LEVELS = ("batch", "group")
KL_ESTIMATORS = ("k1", "k2", "k3")
AGGREGATIONS = ("token", "sequence", "constant")
REJECTION_METRICS = ("ratio", "kl_k1", "kl_k2", "kl_k3", "binary_kl")
PROX_LOGP_METHODS = ("recompute", "loglinear", "metrics", "reuse_train_logp")


@dataclass
class NormConfig:
    """How to centre and scale values: ``(x - mean) / (std + eps)``.

    Attributes:
        mean_level: take the mean over the ``batch`` or over the ``group`` (one prompt's samples); null for no centring.
        mean_leave1out: leave the value itself out of its mean.
        std_level: take the standard deviation over the ``batch`` or over the ``group``; null for no scaling.
        std_unbiased: divide the squared deviations by n - 1 instead of n.
        eps: added to the standard deviation.
        mean_weights: in the mean, weigh all samples equally (``equal``), or by their numbers of tokens (``length``, as
            in OPO). For rewards alone. Not in AReaL.
        scale: divide by the ``deviation``, or by the ``mean`` of the same level (MaxRL). For rewards alone, which must
            not be shifted below 0. Not in AReaL.
        group_size: samples per prompt; must be null or equal to ``gconfig.n_samples``.
    """

    mean_level: str | None = option("batch", one_of(*NORM_LEVELS), fix="null for no centring")
    mean_leave1out: bool = False
    std_level: str | None = option("batch", one_of(*NORM_LEVELS), fix="null for no scaling")
    std_unbiased: bool = True
    eps: float = 1e-5
    group_size: int | None = None
    mean_weights: str = option("equal", one_of("equal", "length"))
    scale: str = option("deviation", one_of("deviation", "mean"))


@dataclass
class RejectionSamplingConfig:
    """Bounds of the decoupled loss's weight pi_prox / pi_behave. TIS, MIS, IcePop and KPop are settings of it:
    ``archon algorithms`` lists them.

    Attributes:
        level: judge every ``token``, or every ``sequence`` as a whole. With metric ``ratio``, level ``sequence`` also
            makes the geometric mean of a sequence's ratios the weight of each of its tokens.
        action: ``mask`` takes tokens out of bounds out of the loss (the mean still counts them), ``clamp`` limits the
            weight to the bounds.
        metric: what the bounds limit: the weight itself (``ratio``), an estimate of the KL (``kl_k1``, ``kl_k2``,
            ``kl_k3``), or the larger direction of the binary KL (``binary_kl``).
        agg: at level ``sequence``, how the metric of a sequence follows from its tokens: ``sum``, ``mean`` or ``max``;
            ratios are summed and averaged as logarithms.
        upper: upper bound.
        lower: lower bound; null for none.
    """

    level: str = option("token", one_of("token", "sequence"))
    action: str = option("mask", one_of("mask", "clamp"))
    metric: str = option("ratio", one_of(*REJECTION_METRICS))
    agg: str = option("mean", one_of("sum", "mean", "max"))
    upper: float = option(5.0, number(above=0))
    lower: float | None = option(None, number())

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.action == "clamp" and self.metric != "ratio":
            yield (
                "action",
                f"found 'clamp' with metric={self.metric}; only the metric 'ratio' can be clamped; use 'mask'",
            )
        if self.lower is None:
            return
        if self.metric == "binary_kl":
            yield "lower", f"found {self.lower} with metric=binary_kl, which has an upper bound alone; leave it out"
        elif self.lower >= self.upper:
            yield "lower", f"found {self.lower}; allowed are numbers below upper={self.upper}, or null"


@dataclass
class PolicyOptions:
    """Policy optimisation (``actor``).

    Attributes:
        ppo_n_minibatches: optimizer steps per rollout batch, each on a different part of it.
        policy_loss: the loss, by its name in ``archon algorithms``: ``clip``, ``cispo``, ``sapo``, ``dppo``, ``gmpo``,
            ``clip_cov``, ``kl_cov``, or one from a plugin. Not in AReaL, which has a switch for each of two.
        eps_clip: clip the policy ratio to [1 - eps_clip, 1 + eps_clip]; 0 with ``m2_threshold`` for no clipping. With
            ``gmpo``, bounds of the log-ratio.
        eps_clip_higher: distance of the upper bound from 1; null takes ``eps_clip``.
        c_clip: dual clip: limit the loss of a negative advantage to c_clip times its size; above 1, or null for none.
        importance_sampling_level: ``token`` compares the policies at every token; ``sequence`` takes the geometric mean
            over a sequence (GSPO).
        use_cispo_loss: AReaL's switch for ``policy_loss: cispo``.
        use_sapo_loss: AReaL's switch for ``policy_loss: sapo``.
        sapo_tau_pos: SAPO's temperature for positive advantages.
        sapo_tau_neg: SAPO's temperature for negative advantages.
        m2_threshold: M2PO: before each update, leave out some of the tokens that it would drive further from the
            rollout's policy, those with the largest squared log-ratios, until the mean over the others of them is at
            most this; null for none.
        dppo_mask_low: DPPO's threshold of the divergence for negative advantages. Not in AReaL.
        dppo_mask_high: DPPO's threshold of the divergence for positive advantages. Not in AReaL.
        dppo_divergence: DPPO's divergence: total variation (``tv``) or binary KL (``kl``, for which the paper's
            thresholds are 0.05). Not in AReaL.
        dppo_kl_coef: weight of the squared log-ratio beside DPPO's mask; 0 in the paper. Not in AReaL.
        clip_cov_ratio: largest share of tokens that Clip-Cov leaves out. Not in AReaL.
        clip_cov_lower: smallest covariance of a token that Clip-Cov leaves out. Not in AReaL.
        clip_cov_upper: largest covariance of a token that Clip-Cov leaves out. Not in AReaL.
        kl_cov_ratio: share of tokens that KL-Cov penalises. Not in AReaL.
        kl_cov_coef: weight of KL-Cov's penalty; 1 in the paper. Not in AReaL.
        reward_norm: normalise the rewards of a batch; null for none. If ``adv_norm`` is null too, ``grpo`` normalises
            with mean and deviation of the group.
        reward_scaling: rewards become (reward + reward_bias) * reward_scaling.
        reward_bias: added to rewards before scaling.
        reward_clip: largest absolute value of a scaled reward.
        overlong_reward_penalty: subtract a penalty that grows linearly over the last ``overlong_tokens`` before
            ``gconfig.max_new_tokens`` and stays constant beyond it (DAPO, eq. 13).
        overlong_tokens: length of the buffer in which the penalty grows.
        overlong_penalty_factor: size of the penalty at and beyond the limit; 1 in DAPO.
        mask_no_eos_with_zero: completions that reach the length limit have reward 0 after ``reward_norm``, whose
            statistics count the rewards that they had. They stay in the loss, with the KL penalty of ``kl_ctl``.
        overlong_filtering: do not train on completions that reach the length limit (DAPO, section 3.4). Their rewards
            still count in the statistics of their group. Not in AReaL.
        dynamic_sampling: leave out groups whose rewards are all equal, since their advantages are 0, and draw further
            prompts in their place until the batch is full (DAPO). AReaL leaves them out only; so does ``dynamic_bs``.
        dynamic_sampling_max_rounds: largest number of sampling rounds per step, each with as many prompts as are
            missing; after the last one, the step trains on the groups that it has. Not in AReaL.
        discount: discount factor per step.
        gae_lambda: lambda of generalised advantage estimation: a number, ``length_adaptive`` (VAPO) or
            ``relative_position``. Without a critic it multiplies ``discount``. AReaL's dotted names of the two
            functions are accepted.
        gae_lambda_kwargs: ``{alpha: A}`` for ``length_adaptive``, 1 - 1 / (A n) for n steps; ``{q: Q}`` for
            ``relative_position``, Q to the power of 1 / (n - 1).
        gae_timestep_unit: what a step is: a ``token``, or a ``turn`` of trained tokens without interruption.
        adv_norm: normalise advantages over all trained tokens of a batch; null for none.
        kl_ctl: weight of the KL penalty that is subtracted from every token's reward. Needs ``ref``.
        kl_estimator: estimator of the KL penalty: ``k1``, ``k2`` or ``k3``.
        recompute_logprob: replace the rollout's log-probabilities with the trainer's.
        use_decoupled_loss: clip against the trainer's log-probabilities at the start of the step, and weight the loss
            by their ratio to the rollout's.
        rejection_sampling: bounds of that weight; null for none.
        prox_logp_method: where the log-probabilities at the start of the step come from: ``recompute`` (a forward
            pass), ``loglinear`` (interpolated between rollout and training by the weights' versions), ``metrics`` (a
            forward pass, and metrics of the errors of approximations) or ``reuse_train_logp`` (the training pass;
            needs one mini-batch).
        loss_aggregation: ``token`` (mean over tokens, DAPO), ``sequence`` (mean over sequences of their means,
            GRPO) or ``constant`` (sum over sequences times ``gconfig.max_new_tokens``, Dr.GRPO). Not in AReaL.
        kl_loss_coef: weight of the KL to the reference as a term of the loss. Needs ``ref``. Not in AReaL.
        kl_loss_estimator: estimator of the KL loss term. Its expected gradient is that of KL(policy || reference)
            with ``k2``, of KL(reference || policy) with ``k3``, and 0 with ``k1``: use ``k1`` only in the reward. Not
            in AReaL.
        entropy_coef: weight of the entropy bonus. Not in AReaL.
    """

    ppo_n_minibatches: int = option(4, POSITIVE)
    policy_loss: str = "clip"
    eps_clip: float = option(0.2, SHARE)
    eps_clip_higher: float | None = option(None, number(above=0))
    c_clip: float | None = option(None, number(above=1))
    importance_sampling_level: str = option("token", one_of("token", "sequence"))
    use_cispo_loss: bool = False
    use_sapo_loss: bool = False
    sapo_tau_pos: float = option(1.0, number(above=0))
    sapo_tau_neg: float = option(1.05, number(above=0))
    m2_threshold: float | None = option(None, number(above=0))
    dppo_mask_low: float = option(0.2, number(least=0))
    dppo_mask_high: float = option(0.2, number(least=0))
    dppo_divergence: str = option("tv", one_of("tv", "kl"))
    dppo_kl_coef: float = option(1e-3, number(least=0))
    clip_cov_ratio: float = option(2e-4, SHARE)
    clip_cov_lower: float = option(1.0, number())
    clip_cov_upper: float = option(5.0, number())
    kl_cov_ratio: float = option(2e-4, SHARE)
    kl_cov_coef: float = option(0.1, number(least=0))
    reward_norm: NormConfig | None = None
    reward_scaling: float = option(1.0, number())
    reward_bias: float = option(0.0, number())
    reward_clip: float = option(20.0, number(above=0))
    overlong_reward_penalty: bool = False
    overlong_tokens: int | None = None
    overlong_penalty_factor: float | None = None
    mask_no_eos_with_zero: bool = False
    overlong_filtering: bool = False
    dynamic_sampling: bool = False
    dynamic_sampling_max_rounds: int = option(10, POSITIVE)
    discount: float = option(1.0, SHARE)
    gae_lambda: float | str = 1.0
    gae_lambda_kwargs: dict[str, Any] = field(default_factory=dict)
    gae_timestep_unit: str = option("token", one_of("token", "turn"))
    adv_norm: NormConfig | None = None
    kl_ctl: float = option(0.1, NOT_NEGATIVE)
    kl_estimator: str = option("k1", one_of(*KL_ESTIMATORS))
    recompute_logprob: bool = False
    use_decoupled_loss: bool = False
    rejection_sampling: RejectionSamplingConfig | None = None
    prox_logp_method: str = option("recompute", one_of(*PROX_LOGP_METHODS))
    loss_aggregation: str = option("token", one_of(*AGGREGATIONS))
    kl_loss_coef: float = option(0.0, NOT_NEGATIVE)
    kl_loss_estimator: str = option("k3", one_of(*KL_ESTIMATORS))
    entropy_coef: float = option(0.0, number())

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from policy_loss_problems(self)
        yield from gae_lambda_problems(self)
        yield from normalisation_problems(self)


@dataclass
class CriticOptions:
    """The value model of ``ppo`` and how it learns (``critic``). Without ``path`` it starts from the actor's initial
    weights, with a value head from the seed.

    Attributes:
        ppo_n_minibatches: optimizer steps per rollout batch, each on a different part of it.
        eps_clip: within a step, a value that has moved further than this towards its return no longer lowers the loss;
            null for no clipping, as in the PPO paper.
        mask_no_eos_with_zero: do not train the critic on completions that reach the length limit.
        warmup_steps: training steps at the start in which the critic learns and the actor keeps its weights. Not in
            AReaL.
        gae_lambda: lambda of the returns that the critic learns; null takes ``actor.gae_lambda``. Not in AReaL.
        bootstrap_truncated: continue a completion that reaches the length limit with the critic's value after its last
            token, instead of 0. Not in AReaL, which continues the longest sequences of its padded batches.
    """

    ppo_n_minibatches: int = option(4, POSITIVE)
    eps_clip: float | None = option(0.5, number(above=0), fix="null switches it off")
    mask_no_eos_with_zero: bool = False
    warmup_steps: int = option(0, NOT_NEGATIVE)
    gae_lambda: float | None = option(None, SHARE)
    bootstrap_truncated: bool = False


@dataclass
class WarmStartOptions:
    """Supervised steps before the training (``warm_start``, ``teacher.warm_start``), for models that cannot do the task
    at all. They have a separate optimizer. The training starts from the resulting weights, and so does ``ref`` unless
    it names a checkpoint; a teacher keeps them. With preferences, the steps train on the chosen answers.

    Attributes:
        steps: supervised steps; 0 for none.
        lr: peak learning rate: linear warm-up over the first tenth of the steps, then linear decay to 0.
        batch_size: records per step; null takes ``data.batch_size``.
    """

    steps: int = option(0, NOT_NEGATIVE)
    lr: float = option(1e-3, number(above=0))
    batch_size: int | None = option(None, POSITIVE)


@dataclass
class RewardOptions:
    """Calls of the reward function (``rewards``), in processes beside each data rank of the trainer, or with servers
    beside the collector.

    Attributes:
        processes: reward processes per data rank, those of all ranks beside the collector if there is one; 0 calls the
            function in the trainer or collector, without a time limit.
        timeout_seconds: time limit per completion. A process that exceeds it is killed and replaced.
        max_failed: largest share of the last 1,000 completions without a reward (exceptions, invalid values, time
            limit); more of them end the run.
    """

    processes: int = option(2, NOT_NEGATIVE)
    timeout_seconds: float = option(15.0, number(above=0))
    max_failed: float = option(0.1, SHARE)
