"""Every default of AReaL that differs from Archon's is in the table of defaults, or means the same."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from archon_core.config.root import default_of
from archon_core.config.sections import build_schema, choose_sections
from archon_core.config.typed import knows
from archon_core.config.yaml_file import parse_yaml
from archon_core.plugins import TrainEngineSpec, registry
from archon_train.areal.facts import facts, names_in, section_classes
from archon_train.areal.keys import DEFAULTS, KEPT_DEFAULTS, PIPELINE_DEFAULTS, fits
from archon_train.areal.names import new_name
from archon_train.experiment import ROOT

SAME = {
    "*.path": ("", None),
    "tokenizer_path": ("", None),
    "trainer.save_every": (None, 0),
    "trainer.eval_every": (None, 0),
    "scheduler.type": (None, "local"),
    "cluster.name_resolve.type": ("nfs", "folder"),  # two names of the same registry
    "*.grad_reduce_dtype": ("float32", None),  # null is float32 beside bfloat16
    "*.optimizer.type": ("adam", "adamw"),  # the same optimizer
    "*.archon.attn_type": ("varlen", None),  # null chooses varlen on CUDA
    "*.scheduling_strategy.type": ("separation", None),  # null runs models on the actor's ranks
    "teacher.rollout.scheduling_strategy.type": ("separation", None),
    "rollout.consumer_batch_size": (1, None),  # null is the batch size, which AReaL's files write here
    "*.rollout.consumer_batch_size": (1, None),  # of teachers, which sample nothing
    "gconfig.top_k": (10**8, 0),
    "eval_gconfig.top_k": (10**8, 0),
    "*.reward_norm.group_size": (1, None),  # AReaL takes the sizes of the groups that it has
    "*.adv_norm.group_size": (1, None),
}
"""Pattern -> AReaL's default and Archon's, which mean the same."""

WHOLE_FILES = {
    "ppo": "algorithm: ppo\ncritic: {}\nref: {}\nteacher: {}\n",
    "grpo": "algorithm: grpo\nref: {}\n",
    "dpo": "algorithm: dpo\nref: {}\n",
    "sft": "algorithm: sft\n",
}


def options(section: str = "") -> Iterator[str]:
    for name in names_in(section):
        path = f"{section}.{name}".lstrip(".")
        if path in ("sglang", "vllm"):
            continue  # sections of other packages, with the same names
        if section_classes(facts(path)) and path.count(".") < 4:
            yield from options(path)
        else:
            yield path


def value(text: str) -> object:
    if text.startswith("int("):
        return int(float(text[4:-1]))
    return {"dict": {}, "list": []}.get(text) if text in ("dict", "list") else ast.literal_eval(text)


@pytest.mark.parametrize("algorithm", list(WHOLE_FILES))
def test_every_default_that_differs_is_in_the_table(algorithm: str) -> None:
    root = ROOT.with_engines(registry().all(TrainEngineSpec))
    choice = choose_sections(registry(), parse_yaml(WHOLE_FILES[algorithm], "f"), root)
    schema = build_schema(root.schema, choice.used)
    compared = set()
    for path in options():
        option = new_name(path) or path
        # SFTConfig, PPOConfig, ... may have different defaults for an option; here they do not.
        for theirs in {fact.default for fact in facts(path)}:
            if not knows(schema, option) or theirs == "MISSING" or theirs.startswith("lambda"):
                continue
            ours = default_of(schema, option)
            rows = [row for row in SAME if fits(row, option)]
            tables = [t for t in (*DEFAULTS, *PIPELINE_DEFAULTS, *KEPT_DEFAULTS) if fits(t, option)]
            compared.add(option)
            if value(theirs) == ours:
                assert not tables, f"{option}: the defaults agree, so the row has no use"
            elif not tables:
                assert rows, f"{option}: AReaL's default is {theirs}, Archon's {ours}"
                assert SAME[rows[0]] == (value(theirs), ours), option
    assert len(compared) > 60
