"""Packages for Llama-like families are complete, equal transformers, and contain only what the family needs.

Writing a package compares its logits with those of transformers: a difference would be a gap.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import subprocess
import sys
import tokenize
import tomllib

import pytest

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 14}

FAMILIES = {
    "llama": {"max_position_embeddings": 131072, "rope_parameters": LLAMA3_ROPE, "num_key_value_heads": 8},
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "qwen2": {},
    "qwen2 with windows": {"model_type": "qwen2", **SLIDING},
    "qwen3": {"head_dim": 128},
    "gemma": {},
    "gemma2": {},
    "granite": {},
    "olmo2": {},
    "phi3": {"pad_token_id": 0},
    "starcoder2": {},
    "mixtral": {},
    "qwen3_moe": {"head_dim": 128, "norm_topk_prob": True},
    "olmoe": {},
    "smollm3": {},
    "exaone4": {},
    "cohere2": {},
    "ernie4_5": {},
    "gemma3_text": {},
    "olmo3": {},
    "glm4": {},
    "hunyuan_v1_dense": {"head_dim": 128},
    "seed_oss": {},
    "qwen2_moe": {},
    "glm4_moe": {"head_dim": 128},
    "gpt_oss": {},
    "youtu": {},
    "deepseek_v2": {"num_experts_per_tok": 6, "first_k_dense_replace": 1},
    "glm4_moe_lite": {"q_lora_rank": None, "attention_bias": True},
}

LATENT = {"youtu", "glm4_moe_lite", "deepseek_v2"}

FILES = {
    ".github/workflows/test.yml",
    ".gitignore",
    "AGENTS.md",
    "CHANGELOG.md",
    "LICENSE",
    "PORTING.md",
    "README.md",
    "pyproject.toml",
    *(
        f"src/MODULE/{name}"
        for name in (
            "__init__.py",
            "arguments.py",
            "model.py",
            "plan.py",
            "plugin.py",
            "py.typed",
            "tiny_config.py",
            "weight_map.py",
        )
    ),
    "tests/test_arguments.py",
    "tests/test_model.py",
}


@pytest.fixture(params=FAMILIES)
def package(request, write):
    return write({"model_type": request.param, **FAMILIES[request.param]})


def files_of(package):
    module = package.folder.name.replace("-", "_")
    paths = (path.relative_to(package.folder).as_posix() for path in package.folder.rglob("*") if path.is_file())
    return {path.replace(module, "MODULE") for path in paths}


def test_a_package_has_no_gap_and_all_files(package):
    assert package.architecture.gaps == ()
    assert files_of(package) == FILES


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
@pytest.mark.parametrize("model_type", [*FAMILIES, "apertus"])
def test_a_package_is_clean_by_its_own_linter_settings(write, model_type):
    package = write({"model_type": model_type, **FAMILIES.get(model_type, {})})
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."],
            cwd=package.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_its_metadata_names_the_entry_point_bounds_and_what_tests_need(package):
    project = tomllib.loads(package.text("pyproject.toml"))["project"]
    module = package.folder.name.replace("-", "_")
    assert project["entry-points"]["archon"] == {package.folder.name: f"{module}.plugin"}
    assert project["dependencies"] == ["archon-core>=0.1,<1", "archon-engine>=0.1,<1"]
    assert {line.partition(">")[0] for line in project["optional-dependencies"]["test"]} == {
        "archon-testing",
        "archon-pipeline",
        "pytest",
        *(["archon-moe"] if package.architecture.experts else []),
    }


WORDS = {
    "model": {
        "softcap": {"gemma2"},
        "_out_norm": {"gemma2", "olmo2", "exaone4", "gemma3_text", "olmo3", "glm4"},
        "ProjectionRMSNorm": {"olmo2", "olmoe", "olmo3"},
        "LayerRotaryEmbedding": {"smollm3", "exaone4", "cohere2", "gemma3_text", "olmo3"},
        "self.input_norm": {"cohere2"},
        "self.q_norm(rotation": {"hunyuan_v1_dense"},
        "self.feed_forward": {"glm4_moe", "glm4_moe_lite", "deepseek_v2"},
        "residual_scale": {"granite"},
        "embedding_scale": {"gemma", "gemma2", "gemma3_text", "granite"},
        "logit_scale": {"granite", "cohere2"},
        "offset=1.0": {"gemma", "gemma2", "gemma3_text"},
        "LayerNorm": {"starcoder2", "cohere2"},
        "class FeedForward": {"starcoder2"},
        "MoEBuilder": {
            "mixtral",
            "qwen3_moe",
            "olmoe",
            "qwen2_moe",
            "glm4_moe",
            "glm4_moe_lite",
            "deepseek_v2",
            "gpt_oss",
        },
        "LatentAttention": LATENT,
        "class Attention": set(FAMILIES) - LATENT,
        "self.core.send_queries(": set(FAMILIES) - LATENT,
        "SwiGLU": set(FAMILIES) - {"starcoder2", "mixtral", "qwen3_moe", "olmoe", "qwen2_moe", "gpt_oss"},
        "AttentionSinks": {"gpt_oss"},
        "GAP": set(),
    },
    "weight_map": {
        "Split(": {
            "phi3",
            "mixtral",
            "qwen3_moe",
            "olmoe",
            "glm4",
            "qwen2_moe",
            "glm4_moe",
            "glm4_moe_lite",
            "deepseek_v2",
        },
        "Stack(": {"mixtral", "qwen3_moe", "olmoe", "qwen2_moe", "glm4_moe", "glm4_moe_lite", "deepseek_v2"},
        "moe.shared_gate": {"qwen2_moe"},
        "choice_bias": {"glm4_moe", "glm4_moe_lite"},
        "q_a_layernorm": {"youtu", "deepseek_v2"},
        "Interleave(": {"gpt_oss"},
    },
    "arguments": {
        "attention_scale": {"gemma2", "gemma3_text", "granite"} | LATENT,
        "partial=True": {"glm4", "glm4_moe"},
        "ClampedGate(": {"gpt_oss"},
        "interleaved=True": {"cohere2", "ernie4_5", "glm4", "deepseek_v2"},
        "_rotates(": {"smollm3", "exaone4", "cohere2"},
        "layer_type=kind": {"gemma3_text", "olmo3"},
    },
}


@pytest.mark.parametrize(("module", "word"), [(module, word) for module in WORDS for word in WORDS[module]])
def test_what_a_family_does_not_need_is_not_written(write, module, word):
    plain = [name for name in FAMILIES if name != "qwen2 with windows"]
    found = {name for name in plain if word in write({"model_type": name, **FAMILIES[name]}).text(module)}
    expected = {name for name in WORDS[module][word] if name in plain}
    assert found == expected


def test_a_model_is_as_short_as_one_written_by_hand(package):
    lines = package.text("model").splitlines()
    assert len(lines) < 150
    # What the arguments say at run time is whether the head is tied, and whether it is a critic's.
    asked = {line.strip() for line in lines if line.strip().startswith(("if ", "elif ")) and " a." in line}
    assert {line.replace("elif", "if").split(" and ")[0] for line in asked} <= {"if stage.has_head", "if a.tied"}
    names = [node.name for node in ast.parse(package.text("model")).body if isinstance(node, ast.ClassDef)]
    own = [] if package.architecture.latent else ["Attention"]
    assert names in ([*own, "DecoderLayer", "Decoder"], [*own, "FeedForward", "DecoderLayer", "Decoder"])


@pytest.mark.parametrize("model_type", ["smollm3", "cohere2", "ernie4_5", "glm4"])
def test_the_modules_of_a_new_dense_family_have_at_most_200_lines_of_code(write, model_type):
    package = write({"model_type": model_type, **FAMILIES[model_type]})
    modules = ("model", "arguments", "plan", "weight_map")
    assert sum(len(code_lines(package.text(module))) for module in modules) <= 200


def code_lines(source):
    """The numbers of the lines that hold more than comments and docstrings."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.string.strip() and token.type != tokenize.COMMENT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return lines


def test_entries_that_are_not_read_are_fixed(write):
    assert write({"model_type": "llama", **FAMILIES["llama"]}).architecture.fixed == {
        "attention_bias": False,
        "mlp_bias": False,
    }
    biased = write({"model_type": "llama", **FAMILIES["llama with biases"]}).architecture.fixed
    assert biased == {"attention_bias": True, "mlp_bias": True}


def test_the_configuration_for_tests_is_small_and_keeps_the_structure(write):
    tiny = write({"model_type": "llama", **FAMILIES["llama"]}).architecture.tiny
    assert (tiny["num_attention_heads"], tiny["num_key_value_heads"], tiny["vocab_size"]) == (4, 2, 128)
    assert tiny["rope_parameters"] == {**LLAMA3_ROPE, "original_max_position_embeddings": 16}
    ungrouped = write({"model_type": "olmo2"}).architecture.tiny
    assert ungrouped["num_key_value_heads"] == ungrouped["num_attention_heads"]
