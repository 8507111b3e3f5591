"""``Run``: which parts a run has, as its configuration says. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archon_core.contracts.engine_config import ROLES
from archon_core.contracts.preview import RunOutline
from archon_rl.agents.checks import uses_agents
from archon_rl.teacher_options import is_pure_distillation
from archon_rl.workflows.rewards_needed import evaluates_rewards, gives_rewards, uses_reward
from archon_train.model_sections import is_frozen


@dataclass(frozen=True)
class Run:
    """A run, for the conditions of ``unused_rows``."""

    outline: RunOutline

    @property
    def config(self) -> Any:
        return self.outline.config

    @property
    def samples(self) -> bool:
        """Whether the algorithm samples completions."""
        return "inference_engine" in self.outline.algorithm.needs

    @property
    def has_servers(self) -> bool:
        return self.samples and self.config.rollout.backend != "local"

    @property
    def learns_pairs(self) -> bool:
        return hasattr(self.config.data, "chosen_key")

    @property
    def distills_only(self) -> bool:
        return self.samples and is_pure_distillation(self.config.teacher)

    @property
    def has_policy_loss(self) -> bool:
        return self.samples and not self.distills_only

    @property
    def replays_routing(self) -> bool:
        """Whether an engine may read the experts of the rollout; those of other packages may have further options."""
        engines = [getattr(self.config, role) for role in ROLES if self.has(role)]
        options = [getattr(getattr(engine, "archon", None), "moe_routing_replay", True) for engine in engines]
        return any(options)

    @property
    def scores(self) -> bool:
        """Whether the run calls a reward function or a reward model."""
        return self.samples and uses_reward(self.config)

    @property
    def uses_agents(self) -> bool:
        """Whether sessions of agents are sampled."""
        return self.samples and uses_agents(self.config)

    def has_agents(self, *modes: str) -> bool:
        """Whether the run has agents, in one of these modes."""
        return self.uses_agents and self.config.rollout.agent.mode in modes

    @property
    def gives_rewards(self) -> bool:
        """Whether the workflow gives rewards without a reward function."""
        return self.samples and gives_rewards(self.config)

    @property
    def evaluates_rewards(self) -> bool:
        """Whether evaluations have rewards."""
        return self.samples and evaluates_rewards(self.config)

    @property
    def has_separate_validation(self) -> bool:
        data, dataset = self.config.data, self.outline.dataset
        reads_files = dataset is None or "validation_path" not in dataset.unused
        return bool(reads_files and (data.validation_path or getattr(getattr(data, "hf", None), "validation_split", 0)))

    @property
    def evaluates(self) -> bool:
        """Whether there may be held-out records; data sets of other packages may have further options for them."""
        dataset = self.outline.dataset
        known = dataset is not None and {section.path for section in dataset.config} <= {"data.hf", "data.arithmetic"}
        return not known or self.has_separate_validation or self.config.data.validation_size > 0

    def trains(self, role: str) -> bool:
        return getattr(self.config, role) is not None and not is_frozen(self.config, role)

    def has(self, role: str) -> bool:
        """Whether the run has the model of a section."""
        match role:
            case "critic":
                present = "critic" in self.outline.algorithm.sections
            case "reward_model":
                present = self.scores and self.outline.reward_role == "reward_model"
            case "ref":
                present = self.reads_reference
            case "teacher":
                present = hasattr(self.config.teacher, "warm_start")
            case _:
                present = True
        return present and getattr(self.config, role) is not None

    @property
    def has_idle_models(self) -> bool:
        """Whether a training engine works in some phases of a step only."""
        return self.samples and (
            any(self.has(role) for role in ("critic", "ref", "reward_model"))
            or (self.has("teacher") and self.config.teacher.engine_type == "train")
        )

    @property
    def reads_reference(self) -> bool:
        if not self.samples:
            return hasattr(self.config.actor, "beta")
        penalty = 0 if self.distills_only else self.config.actor.kl_ctl
        return bool(penalty or self.config.actor.kl_loss_coef)
