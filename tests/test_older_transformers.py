"""Saved folders give the same logits, and the same token ids, in transformers 4.57 as where they were saved.

pip installs that version from a package index into a separate folder, beside this environment's torch. Slow: it
downloads, and runs a model of every family in two processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from archon_core import assemble, parse_layout
from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import OutputRequest
from archon_engine.models.tokenizer import save_tokenizer
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_rl.tokenization import bpe_tokenizer, characters_tokenizer

pytestmark = pytest.mark.wide

PACKAGES = ["transformers==4.57.*", "huggingface-hub<1", "tokenizers>=0.22,<0.23"]
PACKAGES += ["requests", "urllib3", "charset-normalizer", "idna", "certifi"]
"""The version and what it needs beyond this environment, in which huggingface-hub and tokenizers are newer."""

UNREACHABLE = ("No matching distribution", "Could not find a version", "Connection", "Temporary failure", "timed out")

READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
assert transformers.__version__.startswith("4.57."), transformers.__version__
folders, ids = json.loads(sys.argv[1]), torch.tensor([json.loads(sys.argv[2])])
for folder in folders:
    critic = folder.endswith("critic")
    kind = AutoModelForSequenceClassification if critic else AutoModelForCausalLM
    model, info = kind.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder, info)
    stored = kind.from_pretrained(folder, torch_dtype="auto").dtype
    assert stored == torch.float32, (folder, stored)
    with torch.no_grad():
        torch.save(model.eval()(ids, use_cache=False).logits[0], folder + "/logits-4.pt")
"""

READ_TOKENIZERS = """
import json, sys
from transformers import AutoTokenizer
found = {}
for folder in json.loads(sys.argv[1]):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": TEXT}]
    found[folder] = {
        "ids": tokenizer.encode(TEXT),
        "text": tokenizer.decode(tokenizer.encode(TEXT), skip_special_tokens=True),
        "special": sorted(tokenizer.all_special_tokens),
        "ends": [tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id],
        "chat": tokenizer.apply_chat_template(chat, tokenize=False) if tokenizer.chat_template else None,
    }
print(json.dumps(found))
""".replace("TEXT", repr("what is 12 + 3? <eos><|im_end|>"))

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 5e5}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64, "rope_theta": 5e5}
PARTIAL = {"rope_type": "default", "rope_theta": 3e5, "partial_rotary_factor": 0.5}
BASE = {"rope_parameters": {"rope_type": "default", "rope_theta": 3e5}}
OURS = {
    "qwen2": {**BASE, "tie_word_embeddings": True},
    "qwen2-window": {**BASE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"rope_theta": 1e6, "head_dim": 8},
    "qwen3-yarn": {"rope_parameters": YARN, "head_dim": 8},
    "qwen3-critic": {**BASE, "head_dim": 8},
    "qwen3_moe": {**BASE, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
THEIRS = {
    "llama": {"rope_parameters": LLAMA3},
    "llama-linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e5}},
    "mistral": {**BASE, "sliding_window": 8},
    "gemma": {**BASE, "head_dim": 8},
    "gemma2": {**BASE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    },
    "granite": {**BASE, "embedding_multiplier": 3.0, "logits_scaling": 4.0, "residual_multiplier": 0.5},
    "olmo": BASE,
    "olmo2": BASE,
    "olmo3": {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
        },
    },
    "phi3": {**BASE, "sliding_window": 8},
    "starcoder2": {**BASE, "sliding_window": 8},
    "stablelm": {"rope_parameters": PARTIAL, "use_qkv_bias": True},
    "gpt_neox": {"rope_parameters": PARTIAL},
    "gpt2": {},
    "cohere": BASE,
    "cohere2": {**BASE, "sliding_window": 8},
    "nemotron": {"rope_parameters": PARTIAL},
    "glm4": {"rope_parameters": PARTIAL},
    "mixtral": {**BASE, "num_local_experts": 4, "sliding_window": 8},
    "olmoe": {**BASE, "num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {**BASE, "num_local_experts": 4},
}
IDS = [(7 * i) % 125 + 3 for i in range(200)]


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder from which Python imports transformers 4.57."""
    folder = tmp_path_factory.mktemp("transformers4")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode and any(text in done.stderr for text in UNREACHABLE):
        pytest.skip(f"pip reaches no index with transformers 4.57: {done.stderr.strip().splitlines()[-1]}")
    assert not done.returncode, done.stderr
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    """Per case, a saved folder and what the engine that saved it computes."""
    root = tmp_path_factory.mktemp("exports")
    return {case: export(case, root / case) for case in (*OURS, *THEIRS)}


def export(case: str, folder: Path) -> tuple[Path, torch.Tensor]:
    entries, critic = {**OURS, **THEIRS}[case], case.endswith("critic")
    config = ArchonEngineConfig(
        model_config={"model_type": case.partition("-")[0], **SIZES, **entries},
        dtype="float32",
        is_critic=critic,
        optimizer=None,
        archon=ArchonOptions(model=None if case in OURS else "hf"),
    )
    engine = assemble(config, role="actor", layout=parse_layout("archon:d1"), seed=5, total_steps=None)
    engine.initialize()
    output = "values" if critic else "logits"
    found = engine.forward_batch(Batch.from_sequences([IDS]), OutputRequest((output,)))[output]
    engine.save(folder, "hf")
    # transformers' classifier gives the score of the last token.
    return folder, found[-1:].view(-1) if critic else found


def test_transformers_4_computes_what_the_engine_computed(older, exports):
    environment = {**os.environ, "PYTHONPATH": str(older)}
    folders = json.dumps([str(folder) for folder, _ in exports.values()])
    command = [sys.executable, "-c", READ, folders, json.dumps(IDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert not done.returncode, done.stderr
    differences = {}
    for case, (folder, ours) in exports.items():
        theirs = torch.load(folder / "logits-4.pt", weights_only=True)
        differences[case] = float((theirs - ours).abs().max() / ours.abs().max())
    assert {case: value for case, value in differences.items() if not value <= 1e-5} == {}


def chat_tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["what is 2 + 3? 5"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=specials[0], additional_special_tokens=specials[1:]
    )
    fast.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    return fast


def test_transformers_4_reads_the_tokenizers_that_are_saved(older, tmp_path):
    texts = ["what is 12 + 3?"]
    tokenizers = {
        "characters": characters_tokenizer(texts),
        "bpe": bpe_tokenizer(texts, 300),
        "chat": chat_tokenizer(),
    }
    for name, tokenizer in tokenizers.items():
        save_tokenizer(tokenizer, tmp_path / name)
    folders = json.dumps([str(tmp_path / name) for name in tokenizers])
    found = []
    for extra in ({}, {"PYTHONPATH": str(older)}):
        command = [sys.executable, "-c", READ_TOKENIZERS, folders]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **extra})
        assert not done.returncode, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert found[0][str(tmp_path / "chat")]["special"] == ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
