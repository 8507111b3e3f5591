"""Archon's side of ``grpo.py``: the trainer of ``archon train``, one step per turn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from grpo_case import CLIP, CLIP_NORM, LEARNING_RATE, SHAPES, Shape, Turns, end_at, prompt_texts, reward_of

STEPS = 1000
"""More than the turns; the last one ends the process."""


def reward(prompt: str, completion: str, record: Any) -> float:
    """The reward, as ``archon train`` calls it."""
    return reward_of(completion)


def write_run(shape: Shape, seed: int, model: str, folder: Path) -> Path:
    """A configuration file, and its prompts beside it."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text, "answer": ""}) + "\n" for text in prompt_texts(shape)))
    config = {
        "experiment_name": "bench",
        "trial_name": "grpo",
        "seed": seed,
        "algorithm": "grpo",
        "reward": "grpo_archon:reward",
        "cluster": {"fileroot": str(folder / "archon")},
        "actor": {
            "backend": "archon:d1",
            "path": model,
            "enable_tree_training": True,  # prompts once per group in updates, too
            "dtype": "float32",
            "optimizer": {
                "type": "adamw",
                "lr": LEARNING_RATE,
                "beta1": 0.9,
                "beta2": 0.999,
                "weight_decay": 0.0,
                "gradient_clipping": CLIP_NORM,
                "lr_scheduler_type": "constant",
                "warmup_steps_proportion": 0.0,
            },
            "eps_clip": CLIP,
            "kl_ctl": 0.0,
            "ppo_n_minibatches": 1,
        },
        "tokenizer": {"kind": "pretrained"},
        "tokenizer_path": model,
        "data": {"dataset": "jsonl", "path": str(prompts), "prompt_key": "prompt", "batch_size": shape.prompts},
        "rewards": {"processes": 0},
        "rollout": {"backend": "local"},
        "gconfig": {"n_samples": shape.samples, "max_new_tokens": shape.longest, "temperature": 1.0},
        "trainer": {"max_steps": STEPS, "eval_every": 0, "save_every": 0, "eval_before_train": False},
    }
    file = folder / "grpo.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")  # YAML reads JSON
    return file


def main(name: str, seed: str, model: str, folder: str) -> None:
    """Train ``model``, a checkpoint folder, on the shape of a name."""
    turns, shape = Turns(), SHAPES[name]
    from archon_core.cli.main import main as archon
    from archon_rl.trainer.rl_step import RLStep
    from archon_rollout.decode_rows import DecodeRows

    report: dict[str, Any] = {}
    lengths: list[list[list[int]]] = []
    run_step, advance = RLStep.__call__, DecodeRows.advance

    def run_in_turn(self: RLStep, step: int) -> dict[str, float]:
        turns.next(report)
        lengths[:] = [shape.lengths(step).tolist()]
        row = run_step(self, step)
        parts = {key.removeprefix("time/"): value for key, value in row.items() if key.startswith("time/")}
        n_tokens = round(row["completion_tokens"] * shape.prompts * shape.samples)
        report.update(reward=row["reward"], tokens=n_tokens, parts=parts)
        return row

    def advance_to_ends(self: DecodeRows, logits: torch.Tensor, start: int = 0, on_token: Any = None) -> Any:
        samples = [owner.sample for owner in self.owners[start:]]
        chosen = torch.tensor([lengths[0][one.request][one.number] for one in samples])
        return advance(self, end_at(chosen, self._n_generated[start : self.n_active], logits), start, on_token)

    RLStep.__call__, DecodeRows.advance = run_in_turn, advance_to_ends  # type: ignore[method-assign]
    sys.argv = ["archon", "train", str(write_run(shape, int(seed), model, Path(folder)))]
    archon()


if __name__ == "__main__":
    main(*sys.argv[1:])
