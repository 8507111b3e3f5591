"""Entry point. Imports no torch."""

from archon_core.plugins import ModelSpec, hookimpl

ARCHON_PLUGIN_API = "1.0"


@hookimpl
def archon_models():
    return [
        ModelSpec(
            name="plain_llama",
            target="plain_llama.model:Llama",
            summary="Llama, written by hand",
            model_types=("llama",),
            arguments="plain_llama.model:LlamaArguments",
            weight_map="plain_llama.model:weight_map",
            parallel_plan="plain_llama.model:parallel_plan",
            tiny_config="plain_llama.plugin:tiny",
            capabilities=frozenset({"tp", "cp", "pp"}),
        )
    ]


def tiny():
    return {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    }
