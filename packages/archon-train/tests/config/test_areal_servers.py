"""The sections of servers in AReaL's files: misspelt names are errors, whether the server is installed or not."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from archon_core.config.loading import LoadedConfig
from archon_core.config.typed import untyped
from archon_core.config.yaml_file import parse_yaml
from archon_core.errors import ConfigError
from archon_train.areal.meaning import fill_in

Load = Callable[..., LoadedConfig]


@pytest.mark.parametrize(
    ("rollout", "text", "message"),
    [
        ("sglang:d1", "sglang: {mem_fraction: 0.8}", r"sglang\.mem_fraction; did you mean 'mem_fraction_static'"),
        ("vllm:d1", "sglang: {max_running_request: 8}", r"sglang\.max_running_request; did you mean 'max_running_requ"),
        ("local", "vllm: {gpu_memory_utilisation: 0.9}", r"vllm\.gpu_memory_utilisation; did you mean 'gpu_memory_uti"),
        ("local", "vllm: {tensor_parallel_size: 2}", r"vllm\.tensor_parallel_size"),
    ],
)
def test_an_unknown_option_of_a_server_is_refused_with_the_nearest_name(
    load: Load, rollout: str, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"config\.yaml:2: unknown option {message}"):
        load(f"rollout: {{backend: '{rollout}'}}\n{text}\ntotal_train_epochs: 1\n", allow_missing=True)


def test_all_unknown_options_are_reported_together(load: Load) -> None:
    text = "total_train_epochs: 1\nsglang: {a: 1}\nvllm: {b: 2}\nactor: {megatrn: 1}\n"
    with pytest.raises(
        ConfigError, match=r"3 problems:\n.*option sglang\.a\n.*option vllm\.b\n.*option actor\.megatrn"
    ):
        load(text, allow_missing=True)


def test_an_unknown_option_of_a_server_in_an_override_is_refused(load: Load) -> None:
    with pytest.raises(
        ConfigError, match=r"override 'sglang.dtipe=float16': unknown option sglang\.dtipe; did you mean"
    ):
        load("total_train_epochs: 1\n", ["sglang.dtipe=float16"], allow_missing=True)


@dataclass
class Server:
    dtype: str = "bfloat16"
    python: str = ""


@dataclass
class Schema:
    sglang: Server = field(default_factory=Server)


def test_a_driver_may_have_options_that_areal_lacks() -> None:
    tree = parse_yaml("sglang: {dtype: float16, python: p, pyton: q, log_level: info}\n", "f")
    found = fill_in(tree, Schema)
    assert [problem.text for problem in found.problems] == ["unknown option sglang.pyton"]
    assert untyped(found.tree) == {"sglang": {"dtype": "float16", "python": "p", "log_level": "info"}}


def test_a_file_in_archons_format_leaves_names_to_the_driver(load: Load) -> None:
    loaded = load("rollout: {backend: local}\nsglang: {new_in_sglang: 1}\n", allow_missing=True)
    assert [d.effective for d in loaded.decisions] == ["no effect"]
