"""Plugin registration of archon-rl: algorithms, rewards and data sets. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import (
    AlgorithmSpec,
    CommandSpec,
    ConfigSection,
    DatasetSpec,
    PolicyLossSpec,
    RewardSpec,
    WorkflowSpec,
    hookimpl,
)
from archon_rl.tool_specs import archon_reasoning_parsers, archon_tool_parsers, archon_tools

__all__ = ["archon_reasoning_parsers", "archon_tool_parsers", "archon_tools"]

ARCHON_PLUGIN_API = "1.0"

_ARITHMETIC = ConfigSection("data.arithmetic", "archon_rl.data_options:ArithmeticOptions")
_HUGGING_FACE = ConfigSection("data.hf", "archon_rl.data_options:HuggingFaceOptions")
_TOKENIZER = ConfigSection("tokenizer", "archon_rl.data_options:TokenizerOptions")
_POLICY = ConfigSection("actor", "archon_rl.config:PolicyOptions")
_AGENT = ConfigSection("rollout.agent", "archon_rl.agents.options:AgentOptions")
_CRITIC = ConfigSection("critic", "archon_rl.config:CriticOptions")
_CLIP_RANGE = ("eps_clip", "eps_clip_higher")
_PREFERENCES = ConfigSection("data", "archon_rl.preference_config:PreferenceDataOptions")
_REWARDS = ConfigSection("rewards", "archon_rl.config:RewardOptions")
_TEACHER = ConfigSection("teacher", "archon_rl.teacher_options:TeacherOptions")
_TOOLS = ConfigSection("tools", "archon_rl.workflows.tool_options:ToolsOptions")
_ENVIRONMENT = ConfigSection("environment", "archon_rl.workflows.tool_options:EnvironmentOptions")
_MULTI_TURN = ConfigSection("multi_turn", "archon_rl.workflows.options:MultiTurnOptions")
_WARM_START = ConfigSection("warm_start", "archon_rl.config:WarmStartOptions")
_SEPARABLE = ("critic", "ref", "teacher")


@hookimpl
def archon_algorithms() -> Iterable[AlgorithmSpec]:
    return [
        AlgorithmSpec(
            name="sft",
            target="archon_rl.presets:sft",
            trainer="archon_rl.trainer.sft:SFTTrainer",
            preview="archon_rl.preview:preview_sft",
            summary="supervised fine-tuning on the answers of a data set",
            config=(_TOKENIZER,),
        ),
        AlgorithmSpec(
            name="grpo",
            target="archon_rl.presets:grpo",
            trainer="archon_rl.trainer.rl:RLTrainer",
            preview="archon_rl.preview:preview_grpo",
            explain="archon_rl.named_settings:explain_preset",
            summary="group relative policy optimisation (arXiv:2402.03300)",
            needs=("inference_engine",),
            separable=_SEPARABLE,
            config=(_TOKENIZER, _POLICY, _AGENT, _REWARDS, _TEACHER, _WARM_START),
        ),
        AlgorithmSpec(
            name="ppo",
            target="archon_rl.ppo:ppo",
            trainer="archon_rl.trainer.rl:RLTrainer",
            preview="archon_rl.preview:preview_ppo",
            summary="proximal policy optimisation with a critic (arXiv:1707.06347)",
            needs=("inference_engine",),
            sections=("critic",),
            separable=_SEPARABLE,
            config=(_TOKENIZER, _POLICY, _AGENT, _REWARDS, _TEACHER, _WARM_START, _CRITIC),
        ),
        AlgorithmSpec(
            name="dpo",
            target="archon_rl.preference_algorithms:dpo",
            trainer="archon_rl.trainer.preferences:PreferenceTrainer",
            preview="archon_rl.preview:preview_dpo",
            summary="direct preference optimisation (arXiv:2305.18290) and IPO (arXiv:2310.12036)",
            config=(
                _TOKENIZER,
                _PREFERENCES,
                _WARM_START,
                ConfigSection("actor", "archon_rl.preference_config:DPOOptions"),
            ),
        ),
        AlgorithmSpec(
            name="rw",
            target="archon_rl.preference_algorithms:rw",
            trainer="archon_rl.trainer.preferences:PreferenceTrainer",
            preview="archon_rl.preview:preview_rw",
            summary="a Bradley-Terry reward model, for reward=model in later runs",
            config=(_TOKENIZER, _PREFERENCES),
        ),
    ]


@hookimpl
def archon_policy_losses() -> Iterable[PolicyLossSpec]:
    return [
        PolicyLossSpec(
            name="clip",
            target="archon_rl.losses.policy:build_clip",
            summary="PPO's clipped loss, with asymmetric bounds, dual clip and GSPO's sequence level",
            source="arXiv:1707.06347",
            options=(*_CLIP_RANGE, "c_clip"),
            sequence_level=True,
        ),
        PolicyLossSpec(
            name="cispo",
            target="archon_rl.losses.cispo:build_cispo",
            summary="CISPO: the policy gradient with a clipped importance weight",
            source="arXiv:2506.13585",
            options=_CLIP_RANGE,
        ),
        PolicyLossSpec(
            name="sapo",
            target="archon_rl.losses.sapo:build_sapo",
            summary="SAPO: a sigmoid gate in place of clipping",
            source="arXiv:2511.20347",
            options=("sapo_tau_pos", "sapo_tau_neg"),
            sequence_level=True,
        ),
        PolicyLossSpec(
            name="dppo",
            target="archon_rl.losses.dppo:build_dppo",
            summary="DPPO: a mask by the divergence of the policies at a token, and a squared log-ratio",
            source="arXiv:2602.04879",
            options=("dppo_mask_low", "dppo_mask_high", "dppo_divergence", "dppo_kl_coef"),
            decoupled=False,
        ),
        PolicyLossSpec(
            name="gmpo",
            target="archon_rl.losses.gmpo:build_gmpo",
            summary="GMPO: the geometric mean of clipped token ratios",
            source="arXiv:2507.20673",
            options=_CLIP_RANGE,
        ),
        PolicyLossSpec(
            name="clip_cov",
            target="archon_rl.losses.covariance:build_clip_cov",
            summary="Clip-Cov: the clipped loss without the tokens of highest covariance",
            source="arXiv:2505.22617",
            options=(*_CLIP_RANGE, "c_clip", "clip_cov_ratio", "clip_cov_lower", "clip_cov_upper"),
        ),
        PolicyLossSpec(
            name="kl_cov",
            target="archon_rl.losses.covariance:build_kl_cov",
            summary="KL-Cov: a KL penalty at the tokens of highest covariance",
            source="arXiv:2505.22617",
            options=("kl_cov_ratio", "kl_cov_coef"),
        ),
    ]


@hookimpl
def archon_rewards() -> Iterable[RewardSpec]:
    return [
        RewardSpec(
            name="arithmetic",
            aliases=("exact",),
            target="archon_rl.rewards.arithmetic:final_number_reward",
            summary="1 when the completion's marked or last number is the answer's, else 0",
        ),
        RewardSpec(
            name="gsm8k",
            target="archon_rl.rewards.gsm8k:gsm8k_reward",
            summary="1 when the number after '####' (or in \\boxed{}, or the last one) is the answer's, else 0",
        ),
        RewardSpec(
            name="model",
            target="archon_rl.trainer.reward_model:RewardModel",
            summary="the score of a reward model (reward_model.path), such as an export of algorithm rw",
            role="reward_model",
        ),
    ]


@hookimpl
def archon_workflows() -> Iterable[WorkflowSpec]:
    return [
        WorkflowSpec(
            name="rlvr",
            target="archon_rl.workflows.rlvr:rlvr",
            summary="one answer per sample, scored by the reward",
        ),
        WorkflowSpec(
            name="multi_turn",
            target="archon_rl.workflows.multi_turn:multi_turn",
            summary="feedback after wrong answers, and further attempts (multi_turn.max_turns)",
            config=(_MULTI_TURN,),
        ),
        WorkflowSpec(
            name="tools",
            target="archon_rl.workflows.tool_use:tools",
            summary="answers with calls of tools (tools.names)",
            config=(_TOOLS,),
        ),
        WorkflowSpec(
            name="environment",
            target="archon_rl.workflows.environment:environment",
            summary="a conversation with an environment, which gives the reward (environment.name)",
            config=(_ENVIRONMENT,),
            gives_rewards=True,
        ),
        WorkflowSpec(
            name="agent",
            target="archon_rl.agents.workflow:agent_workflow",
            summary="agents that know only an OpenAI client (rollout.agent)",
            gives_rewards=True,
        ),
    ]


@hookimpl
def archon_datasets() -> Iterable[DatasetSpec]:
    return [
        DatasetSpec(
            name="jsonl",
            target="archon_rl.datasets.jsonl:jsonl_dataset",
            summary="a file of JSON lines (data.path)",
        ),
        DatasetSpec(
            name="hf",
            target="archon_rl.datasets.hf:huggingface_dataset",
            summary="a Hugging Face data set (data.path: hub id or folder)",
            config=(_HUGGING_FACE,),
        ),
        DatasetSpec(
            name="arithmetic",
            target="archon_rl.datasets.arithmetic:arithmetic_dataset",
            summary="generated problems 'a op b', with a held-out split",
            config=(_ARITHMETIC,),
            unused=("path", "validation_path"),
            preferences=False,
        ),
    ]


@hookimpl
def archon_commands() -> Iterable[CommandSpec]:
    return [
        CommandSpec(
            name="algorithms",
            target="archon_rl.cli:algorithms",
            summary="List algorithms, policy losses, and presets with their sources and options.",
        ),
        CommandSpec(
            name="trajectories",
            target="archon_rl.trajectories_cli:trajectories",
            summary="Read the trajectories of a run: prompts, completions, rewards, versions of tokens.",
        ),
        CommandSpec(
            name="simulate",
            target="archon_rl.simulate_cli:simulate_runs",
            summary="Predict steps per second of asynchronous training from the times of sampling and training.",
        ),
    ]
