"""Plugin registration of archon-rl: algorithms, rewards and data sets. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import AlgorithmSpec, ConfigSection, DatasetSpec, RewardSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"

_ARITHMETIC = ConfigSection("data.arithmetic", "archon_rl.config:ArithmeticOptions")
_HUGGING_FACE = ConfigSection("data.hf", "archon_rl.config:HuggingFaceOptions")
_TOKENIZER = ConfigSection("tokenizer", "archon_rl.config:TokenizerOptions")
_POLICY = ConfigSection("actor", "archon_rl.config:PolicyOptions")
_WARM_START = ConfigSection("warm_start", "archon_rl.config:WarmStartOptions")


@hookimpl
def archon_algorithms() -> Iterable[AlgorithmSpec]:
    return [
        AlgorithmSpec(
            name="sft",
            target="archon_rl.presets:sft",
            trainer="archon_rl.trainer.sft:SFTTrainer",
            summary="supervised fine-tuning on the answers of a data set",
            config=(_TOKENIZER,),
        ),
        AlgorithmSpec(
            name="grpo",
            target="archon_rl.presets:grpo",
            trainer="archon_rl.trainer.rl:RLTrainer",
            summary="group relative policy optimisation (arXiv:2402.03300)",
            needs=("inference_engine",),
            config=(_TOKENIZER, _POLICY, _WARM_START),
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
        ),
    ]
