"""Published algorithms as settings of ``algorithm: grpo`` or ``ppo``: names for combinations of options.

``archon algorithms`` lists them. The values of a paper's own experiments stand here where the paper has them; they are
a start, not a recommendation for other models. A preset says whether there is a KL to the reference, and where: the
default of ``actor.kl_ctl`` is AReaL's. Imports no torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class NamedSettings:
    """An algorithm or correction by its published name.

    Attributes:
        name: as users write it.
        source: paper as ``arXiv:NUMBER``, or the address of the document that defines it.
        summary: what it changes.
        options: dotted option -> value, as an override on the command line has it.
        corrects: whether it corrects for the difference of rollout and trainer, so that it combines with the others.
        algorithm: the algorithm that takes the options; those that correct combine with any.
    """

    name: str
    source: str
    summary: str
    options: Mapping[str, str] = field(default_factory=dict)
    corrects: bool = False
    algorithm: str = "grpo"

    @property
    def overrides(self) -> tuple[str, ...]:
        """The options as overrides of ``archon train``."""
        chosen = () if self.algorithm == "grpo" else (f"algorithm={self.algorithm}",)
        return chosen + tuple(f"{option}={value}" for option, value in self.options.items())


_AS_THEY_ARE = {"actor.adv_norm": "null"}
_NO_KL = {"actor.kl_ctl": "0.0", "actor.kl_loss_coef": "0.0"}
"""No KL to a reference, neither in the reward nor in the loss."""
_REFERENCE = {"ref": "{}"}
_WHOLE_BATCH = {"actor.adv_norm.mean_level": "batch", "actor.adv_norm.std_level": "batch"}


def _group(std_level: str = "group", *, advantages: Mapping[str, str] = _AS_THEY_ARE, **more: str) -> dict[str, str]:
    """Rewards centred by their group."""
    norm = {"mean_level": "group", "std_level": std_level, **more}
    return {**{f"actor.reward_norm.{name}": value for name, value in norm.items()}, **advantages}


def _corrected(**bounds: str) -> dict[str, str]:
    rejection = {f"actor.rejection_sampling.{name}": value for name, value in bounds.items()}
    return {"actor.use_decoupled_loss": "true", **rejection}


NAMED_SETTINGS: tuple[NamedSettings, ...] = (
    NamedSettings(
        "GRPO",
        "arXiv:2402.03300",
        "rewards relative to mean and deviation of the group, losses averaged per sequence, the KL to the reference in "
        "the loss, one update per batch",
        {
            **_group(),
            "actor.loss_aggregation": "sequence",
            "actor.kl_ctl": "0.0",
            "actor.kl_loss_coef": "0.04",
            "actor.kl_loss_estimator": "k3",
            "actor.ppo_n_minibatches": "1",
            **_REFERENCE,
        },
    ),
    NamedSettings(
        "Dr.GRPO",
        "arXiv:2503.20783",
        "GRPO without division by the deviation and by lengths, and without a KL",
        {**_group("null"), "actor.loss_aggregation": "constant", **_NO_KL},
    ),
    NamedSettings(
        "DAPO",
        "arXiv:2503.14476",
        "asymmetric clipping, losses averaged over tokens, prompts without a difference replaced by others, no KL; add "
        "actor.overlong_reward_penalty with a buffer that suits gconfig.max_new_tokens",
        {
            **_group(),
            "actor.eps_clip": "0.2",
            "actor.eps_clip_higher": "0.28",
            "actor.loss_aggregation": "token",
            "actor.dynamic_sampling": "true",
            **_NO_KL,
        },
    ),
    NamedSettings(
        "GSPO",
        "arXiv:2507.18071",
        "one ratio per sequence, clipped as a whole",
        {
            **_group(),
            "actor.importance_sampling_level": "sequence",
            "actor.eps_clip": "3e-4",
            "actor.eps_clip_higher": "4e-4",
            "actor.loss_aggregation": "sequence",
            **_NO_KL,
        },
    ),
    NamedSettings(
        "CISPO",
        "arXiv:2506.13585",
        "clips the importance weight and keeps every token's gradient",
        {
            **_group(),
            "actor.policy_loss": "cispo",
            "actor.eps_clip": "1.0",
            "actor.eps_clip_higher": "4.0",
            "actor.loss_aggregation": "token",
            **_NO_KL,
        },
    ),
    NamedSettings(
        "SAPO",
        "arXiv:2511.20347",
        "a sigmoid gate in place of clipping",
        {
            **_group(),
            "actor.policy_loss": "sapo",
            "actor.sapo_tau_pos": "1.0",
            "actor.sapo_tau_neg": "1.05",
            "actor.loss_aggregation": "sequence",
            **_NO_KL,
        },
    ),
    NamedSettings(
        "M2PO",
        "arXiv:2510.01161",
        "leaves out the tokens with the largest squared log-ratios, and does not clip",
        {
            **_group(),
            "actor.m2_threshold": "0.04",
            "actor.eps_clip": "0.0",
            "actor.loss_aggregation": "token",
            **_NO_KL,
        },
    ),
    NamedSettings(
        "DPPO",
        "arXiv:2602.04879",
        "masks tokens by the total variation of the two policies; with prime-rl's thresholds and squared log-ratio",
        {
            "actor.policy_loss": "dppo",
            "actor.dppo_divergence": "tv",
            "actor.dppo_mask_low": "0.2",
            "actor.dppo_mask_high": "0.2",
            "actor.dppo_kl_coef": "1e-3",
            **_group("null"),
            **_NO_KL,
        },
    ),
    NamedSettings(
        "GMPO",
        "arXiv:2507.20673",
        "the geometric mean of clipped token ratios",
        {
            **_group(),
            "actor.policy_loss": "gmpo",
            "actor.eps_clip": "0.4",
            "actor.loss_aggregation": "sequence",
            **_NO_KL,
        },
    ),
    NamedSettings(
        "Clip-Cov",
        "arXiv:2505.22617",
        "leaves out tokens with a high covariance of log-probability and advantage",
        {
            **_group(),
            "actor.policy_loss": "clip_cov",
            "actor.clip_cov_ratio": "2e-4",
            "actor.clip_cov_lower": "1.0",
            "actor.clip_cov_upper": "5.0",
            **_NO_KL,
        },
    ),
    NamedSettings(
        "KL-Cov",
        "arXiv:2505.22617",
        "a KL penalty at the tokens with the highest covariance",
        {
            **_group(),
            "actor.policy_loss": "kl_cov",
            "actor.kl_cov_ratio": "2e-3",
            "actor.kl_cov_coef": "1.0",
            **_NO_KL,
        },
    ),
    NamedSettings(
        "dual clip",
        "arXiv:1912.09729",
        "bounds the loss of tokens with a negative advantage",
        {"actor.c_clip": "3.0"},
    ),
    NamedSettings(
        "RLOO",
        "arXiv:2402.14740",
        "rewards relative to the mean of the other samples; the KL to the reference in the reward",
        {
            **_group("null", mean_leave1out="true"),
            "actor.kl_ctl": "0.1",
            "actor.kl_estimator": "k1",
            "actor.kl_loss_coef": "0.0",
            **_REFERENCE,
        },
    ),
    NamedSettings(
        "REINFORCE++",
        "arXiv:2501.03262",
        "no baseline per prompt: the KL to the reference in the reward, normalised over the batch",
        {
            "actor.reward_norm": "null",
            **_WHOLE_BATCH,
            "actor.kl_ctl": "1e-3",
            "actor.kl_estimator": "k1",
            "actor.kl_loss_coef": "0.0",
            **_REFERENCE,
        },
    ),
    NamedSettings(
        "REINFORCE++ baseline",
        "arXiv:2501.03262",
        "rewards relative to the mean of the group, then normalised over the batch; the KL to the reference in the "
        "loss",
        {
            **_group("null", advantages=_WHOLE_BATCH),
            "actor.kl_ctl": "0.0",
            "actor.kl_loss_coef": "1e-3",
            "actor.kl_loss_estimator": "k2",
            **_REFERENCE,
        },
    ),
    NamedSettings(
        "LitePPO",
        "arXiv:2508.08221",
        "mean of the group, deviation of the batch, losses averaged over tokens",
        {**_group("batch"), "actor.loss_aggregation": "token", **_NO_KL},
    ),
    NamedSettings(
        "OPO",
        "arXiv:2505.23585",
        "the mean of the group weighted by lengths, one update per batch, no KL and no entropy bonus",
        {
            **_group("null", mean_weights="length"),
            "actor.ppo_n_minibatches": "1",
            **_NO_KL,
            "actor.entropy_coef": "0.0",
        },
    ),
    NamedSettings(
        "MaxRL",
        "arXiv:2602.02710",
        "divides by the mean of the group; rewards from 0 on",
        {**_group("group", scale="mean", eps="0.0"), "actor.reward_bias": "0.0", **_NO_KL},
    ),
    NamedSettings(
        "VAPO lambda",
        "arXiv:2504.05118",
        "lambda of advantage estimation that grows with the length of the completion",
        {"actor.gae_lambda": "length_adaptive", "actor.gae_lambda_kwargs.alpha": "0.05"},
    ),
    NamedSettings(
        "on-policy distillation",
        "https://thinkingmachines.ai/blog/on-policy-distillation",
        "learns the teacher's distribution at the tokens that the student samples; needs no reward",
        {"teacher.engine_type": "train", "teacher.rl_loss_weight": "0.0", "teacher.distill_loss_weight": "1.0"},
    ),
    NamedSettings(
        "KDRL",
        "arXiv:2506.02208",
        "the policy loss and the KL to teacher; with AReaL's weights",
        {
            "teacher.engine_type": "train",
            "teacher.rl_loss_weight": "1.0",
            "teacher.distill_loss_weight": "0.005",
            **_NO_KL,
        },
    ),
    NamedSettings(
        "PPO",
        "arXiv:1707.06347",
        "a critic without value clipping, and advantages with lambda 0.95, normalised over the batch",
        {
            **_WHOLE_BATCH,
            "actor.eps_clip": "0.2",
            "actor.gae_lambda": "0.95",
            "critic.eps_clip": "null",
            **_NO_KL,
        },
        algorithm="ppo",
    ),
    NamedSettings(
        "VC-PPO",
        "arXiv:2503.01491",
        "the critic learns alone first, and with lambda 1",
        {
            **_WHOLE_BATCH,
            "actor.gae_lambda": "0.95",
            "critic.gae_lambda": "1.0",
            "critic.warmup_steps": "100",
            **_NO_KL,
        },
        algorithm="ppo",
    ),
    NamedSettings(
        "VAPO",
        "arXiv:2504.05118",
        "VC-PPO with a length-adaptive lambda, asymmetric clipping and losses averaged over tokens; the paper's "
        "language-model loss on correct completions is left out",
        {
            **_WHOLE_BATCH,
            "actor.eps_clip": "0.2",
            "actor.eps_clip_higher": "0.28",
            "actor.loss_aggregation": "token",
            "actor.gae_lambda": "length_adaptive",
            "actor.gae_lambda_kwargs.alpha": "0.05",
            "critic.gae_lambda": "1.0",
            "critic.warmup_steps": "50",
            **_NO_KL,
        },
        algorithm="ppo",
    ),
    NamedSettings(
        "decoupled",
        "arXiv:2505.24298",
        "clips against the policy at the start of the step, and weighs by its ratio to the rollout's",
        {"actor.use_decoupled_loss": "true"},
        corrects=True,
    ),
    NamedSettings(
        "TIS",
        "https://fengyao.notion.site/off-policy-rl",
        "truncated importance sampling: limits the weight of every token",
        _corrected(level="token", action="clamp", metric="ratio", upper="2.0"),
        corrects=True,
    ),
    NamedSettings(
        "MIS",
        "https://richardli.xyz/rl-collapse",
        "masked importance sampling: leaves out sequences that became too much more likely",
        _corrected(level="sequence", action="mask", metric="ratio", agg="sum", upper="2.0"),
        corrects=True,
    ),
    NamedSettings(
        "IcePop",
        "arXiv:2510.18855",
        "leaves out tokens whose probabilities differ too much, in both directions",
        _corrected(level="token", action="mask", metric="ratio", lower="0.5", upper="5.0"),
        corrects=True,
    ),
    NamedSettings(
        "KPop",
        "https://ringtech.notion.site/kpop",
        "leaves out tokens whose binary KL is too large in either direction",
        _corrected(level="token", action="mask", metric="binary_kl", upper="2.0"),
        corrects=True,
    ),
)


def find_settings(name: str) -> NamedSettings | None:
    """The settings of a name, in any case; spaces, hyphens, dots and underscores do not count."""
    wanted = _plain(name)
    return next((settings for settings in NAMED_SETTINGS if _plain(settings.name) == wanted), None)


def explain_preset(name: str) -> str:
    """Advice for users who write a preset's name as ``algorithm``; empty for other names."""
    settings = find_settings(name)
    if settings is None or _plain(settings.name) == settings.algorithm:
        return ""  # GRPO is nearest to grpo
    preset = shlex.quote(settings.name)
    return (
        f"{settings.name} is a preset: archon train FILE algorithm={settings.algorithm} $(archon algorithms {preset})"
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in " -._")
