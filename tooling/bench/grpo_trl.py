"""TRL's side of ``grpo.py``: GRPOTrainer, one step per turn. Runs in TRL's own environment."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from grpo_case import (
    CLIP,
    CLIP_NORM,
    LEARNING_RATE,
    PROMPT_TOKENS,
    SHAPES,
    Shape,
    Turns,
    end_at,
    prompt_texts,
    reward_of,
)

STEPS = 1000
"""More than the turns; the last one ends the process."""


def options_of(shape: Shape, seed: int, folder: Path) -> dict[str, Any]:
    """Options of GRPOConfig: one update per batch in one micro-batch, no recomputation, old log-probabilities from the
    update's own pass."""
    return {
        "output_dir": str(folder / "trl"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": shape.prompts * shape.samples,
        "num_generations": shape.samples,
        "max_completion_length": shape.longest,
        "max_steps": STEPS,
        "shuffle_dataset": False,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": CLIP_NORM,
        "epsilon": CLIP,
        "beta": 0.0,
        "num_iterations": 1,
        "loss_type": "dapo",
        "temperature": 1.0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
    }


def main(name: str, seed: str, model: str, folder: str) -> None:
    """Train ``model``, a checkpoint folder, on the shape of a name."""
    turns, shape = Turns(), SHAPES[name]
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    report: dict[str, Any] = {}
    lengths: list[torch.Tensor] = []

    class TakeTurns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.next(report)
            lengths[:] = [shape.lengths(state.global_step).flatten()]

    def reward(completions: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        rewards = [reward_of(completion) for completion in completions]
        report.update(reward=mean(rewards), tokens=sum(map(len, completion_ids)))
        return rewards

    def process(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return end_at(lengths[0], ids.shape[1] - PROMPT_TOKENS, scores)

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    policy.generate = partial(policy.generate, logits_processor=LogitsProcessorList([process]))
    trainer = GRPOTrainer(
        policy,
        reward_funcs=reward,
        args=GRPOConfig(**options_of(shape, int(seed), Path(folder))),
        train_dataset=Dataset.from_dict({"prompt": prompt_texts(shape)}),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[TakeTurns()],
    )
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
