"""What docs/security.md promises: files from elsewhere run nothing, and every place that could is on its list."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from archon_core import assemble, parse_layout, registry
from archon_core.cli.main import main
from archon_core.contracts.engine_config import EngineConfig, OptimizerConfig
from archon_core.contracts.spec import load_target
from archon_core.errors import ArchonError, ConfigError, UnknownNameError, WeightsError
from archon_core.serving.run_token import TOKEN
from archon_engine.checkpoint.conversion import convert_to_hf
from archon_engine.checkpoint.seal import (
    SEAL,
    read_seal,
    seal_whole,
    write_seal,
)
from archon_engine.models.hf_config import load_hf_config
from archon_rl.rewards.environment import reward_environment
from archon_rl.text_encoding import TextEncoder
from archon_train.experiment import load_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")

MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "ctypes", "runpy", "subprocess", "jinja2"}
MODULES |= {"yaml", "multiprocessing", "zipfile", "tarfile"}
"""Modules whose import is a place."""

CALLS = {"eval", "exec", "compile", "__import__"}
"""Functions that are a place where they are called by their bare name."""

METHODS = {"import_module", "spec_from_file_location", "exec_module", "entry_points"}
METHODS |= {"all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"}
METHODS |= {"apply_chat_template", "from_pretrained", "load_dataset", "snapshot_download", "unpack_archive"}
METHODS |= {"FileSystemReader", "get_class_from_dynamic_module"}
"""Functions that are a place however they are reached."""

ATTRIBUTES = {f"{module}.load" for module in ("torch", "dcp", "np", "numpy")} | {"os.system", "os.popen"}
"""The same where the module is written, too."""


def places_in(file: Path) -> set[str]:
    """The constructs in a file of Python that turn bytes into objects, code or processes."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").partition(".")[0]} & MODULES
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            found.add(node.func.id)
        elif isinstance(node, ast.Name) and node.id in METHODS:
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found |= {node.attr, ast.unparse(node)} & (METHODS | ATTRIBUTES)
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            found.add("trust_remote_code")
            assert isinstance(node.value, ast.Constant), f"{file}:{node.value.lineno}: trust_remote_code"
            assert node.value.value is False, f"{file}:{node.value.lineno}: trust_remote_code must be False"
    return found


def all_places() -> set[tuple[str, str]]:
    """(construct, module) for every package."""
    found = set()
    for source in sorted(ROOT.glob("packages/*/src")):
        for file in source.rglob("*.py"):
            module = ".".join(file.relative_to(source).with_suffix("").parts)
            found |= {(construct, module) for construct in places_in(file)}
    return found


def listed_places() -> set[tuple[str, str]]:
    """The same from the table of the page: constructs in the first column, modules in the second."""
    section = PAGE.partition("## Every place")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "| `" in line]
    return {
        (construct, module)
        for constructs, modules, _ in rows
        for construct in re.findall(r"`([^`]+)`", constructs)
        for module in re.findall(r"`([^`]+)`", modules)
    }


def test_every_place_that_could_run_something_is_in_the_documentation_and_no_other():
    found, listed = all_places(), listed_places()
    assert sorted(found - listed) == [], "new places: say in docs/security.md what is trusted there, and why"
    assert sorted(listed - found) == [], "places that are gone: remove them from docs/security.md"


def test_the_search_for_places_finds_each_kind(tmp_path):
    """Otherwise an empty list would be no news."""
    file = tmp_path / "module.py"
    file.write_text(
        "import pickle, os\nfrom yaml import load\neval('1')\ntorch.load('x')\nos.system('x')\nmodel.eval()\n"
        "importlib.import_module('x')\nf(trust_remote_code=False)\ncompile = 3\n"
    )
    assert places_in(file) == {
        *("pickle", "yaml", "eval", "torch.load", "os.system", "import_module", "trust_remote_code"),
    }
    file.write_text("f(trust_remote_code=True)")
    with pytest.raises(AssertionError, match="must be False"):
        places_in(file)


class Touch:
    """An object whose unpickling makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return (open, (self.mark, "w"))


@pytest.fixture(scope="module")
def engine():
    config = load_target(registry().get("model", "qwen3").tiny_config)()
    engine = assemble(
        EngineConfig(model_config=config, dtype="float32", optimizer=OptimizerConfig(lr=1e-3)),
        role="actor",
        layout=parse_layout("archon:d1"),
        seed=1,
        total_steps=None,
    )
    engine.initialize()
    return engine


@pytest.fixture(scope="module")
def saved(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    engine.save(folder / "checkpoints" / "step-00000001" / "dcp", "dcp")
    return folder


@pytest.fixture
def run(saved, tmp_path):
    """A run's folder with a checkpoint, to be tampered with."""
    return shutil.copytree(saved, tmp_path / "run")


def reseal(state, name):
    """As whoever plants a file would: the seal lies beside it, and has no secret."""
    seal = read_seal(state)
    (state / SEAL).unlink()
    write_seal(state, {**seal, name: seal_whole(state / name)})


def archon(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code or 0


def test_a_training_state_from_elsewhere_runs_nothing_when_it_is_loaded_or_converted(run, engine, tmp_path, capsys):
    state, mark = run / "checkpoints" / "step-00000001" / "dcp", tmp_path / "mark"
    (state / ".metadata").write_bytes(pickle.dumps(Touch(mark)))
    reseal(state, ".metadata")
    with pytest.raises(WeightsError, match=r"dcp/\.metadata: found \w*io\.open, .*nothing was run"):
        engine.load(state, "dcp")
    assert archon("convert", run, tmp_path / "out", "--to", "hf") == 2
    printed = capsys.readouterr().err
    assert "io.open, which a checkpoint's description does not need" in printed.replace("\n", " ")
    assert "Traceback" not in printed
    assert not mark.exists()


def test_names_in_a_checkpoint_are_looked_up_among_installed_models_and_import_nothing(run, tmp_path, monkeypatch):
    state = run / "checkpoints" / "step-00000001" / "dcp"
    plant_module(tmp_path, monkeypatch)
    model = json.loads((state / "model.json").read_text())
    for name in ("planted:attack", "planted"):
        (state / "model.json").write_text(json.dumps({**model, "model": name}))
        reseal(state, "model.json")
        with pytest.raises(UnknownNameError, match=name):
            convert_to_hf(state, tmp_path / "out")
    assert "planted" not in sys.modules
    assert not (tmp_path / "mark").exists()


def plant_module(folder, monkeypatch):
    """A module ``planted`` that an import would find and that makes the file ``mark``."""
    (folder / "planted.py").write_text(f"open({str(folder / 'mark')!r}, 'w')\ndef attack(*a, **k): return 1.0\n")
    monkeypatch.syspath_prepend(folder)


EXAMPLE = ROOT / "examples/grpo_arithmetic.yaml"


@pytest.mark.parametrize("name", ["planted:attack", "planted.attack", "planted", "os:system", "timeit:timeit"])
@pytest.mark.parametrize("option", ["reward", "data.dataset", "algorithm", "actor.archon.model", "scheduler.type"])
def test_names_in_a_configuration_import_nothing(option, name, tmp_path, monkeypatch, capsys):
    plant_module(tmp_path, monkeypatch)
    overrides = [f"{option}={json.dumps(name)}", f"cluster.fileroot={tmp_path}"]
    # A dry run ends with 0 where a package may be missing on this machine alone, as a model's.
    assert archon("train", EXAMPLE, *overrides, "--dry-run") == (0 if option == "actor.archon.model" else 2)
    assert "Traceback" not in capsys.readouterr().err
    assert "planted" not in sys.modules
    assert not (tmp_path / "mark").exists()


def test_a_dry_run_imports_no_reward_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\ndef attack(a, b, c): return 1.0\n")
    monkeypatch.chdir(tmp_path)
    assert archon("train", EXAMPLE, "reward=planted:attack", f"cluster.fileroot={tmp_path}", "--dry-run") == 0
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/name:planted.attack", "!!python/module:planted"]
)
def test_tags_in_a_yaml_file_make_no_objects(tag, tmp_path, monkeypatch):
    plant_module(tmp_path, monkeypatch)
    file = tmp_path / "run.yaml"
    value = f"[touch {tmp_path / 'mark'}]" if "apply" in tag else "''"
    file.write_text(f"algorithm: grpo\ndata: {tag} {value}\n")
    with pytest.raises(ConfigError, match=r"the tag 'tag:yaml\.org,2002:python/.*' is not supported"):
        load_config(file)
    assert "planted" not in sys.modules
    assert not (tmp_path / "mark").exists()


UNSAFE = "unsafe|not safely callable"
ATTACKS = {
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", UNSAFE),
    "globals": ("{{ raise_exception.__globals__['__builtins__']['open']('MARK', 'w') }}", UNSAFE),
    "a builtin": ("{{ cycler.__init__.__globals__.os.system('touch MARK') }}", UNSAFE),
    "by filters": ("{{ ((messages|attr('__class__'))|attr('__base__')).x }}", "jinja2.runtime.Undefined"),
    "by format": ("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", UNSAFE),
    "changes": ("{% set _ = messages.append({'role': 'user'}) %}", UNSAFE),
    "includes": ("{% include '/etc/passwd' %}", "no loader"),
}
"""What a template does, and what Jinja's sandbox says to it."""


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_chat_template_runs_in_a_sandbox(attack, tmp_path):
    tokenizer = Tokenizer(tokenizer_models.WordLevel({"<end>": 0}, unk_token="<end>"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    template, refusal = ATTACKS[attack]
    fast.chat_template = template.replace("MARK", str(tmp_path / "mark"))
    with pytest.raises(Exception, match=refusal):
        TextEncoder(fast, "prompt", "answer").encode_prompt({"prompt": "hello", "answer": "x"})
    assert not (tmp_path / "mark").exists()


def test_a_model_configuration_asks_for_no_code():
    """transformers 5 would take implementations from hub ids, and ``auto_map`` from Python files."""
    config = load_hf_config(
        {
            "model_type": "llama",
            **dict.fromkeys(("attn_implementation", "_attn_implementation"), "planted/kernel"),
            **dict.fromkeys(("experts_implementation", "_experts_implementation"), "planted/kernel"),
            "auto_map": {"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"},
        }
    )
    assert config._attn_implementation is None
    assert config._experts_implementation is None
    with pytest.raises(ArchonError, match="Archon never runs code from the hub"):
        load_hf_config({"model_type": "planted", "auto_map": {"AutoConfig": "planted.Config"}})


@torch.no_grad()
def test_a_package_written_for_a_hostile_configuration_holds_its_texts_as_texts(tmp_path, monkeypatch):
    """``archon new model --from-hf`` imports what it has written, to compare it with transformers."""
    mark = tmp_path / "mark"
    code = f'"}}\n\nopen({str(mark)!r}, "w")\n# """\n\''
    entries = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        f"hostile {code}": code,
        "hostile": [code, {code: code}],
    }
    (tmp_path / "config.json").write_text(json.dumps(entries))
    monkeypatch.chdir(tmp_path)
    assert archon("new", "model", "mine", "--from-hf", tmp_path / "config.json") == 0
    assert not mark.exists()


def test_the_token_of_servers_is_no_variable_of_reward_processes():
    assert reward_environment({TOKEN: "secret", "HOME": "/root"}) == {"HOME": "/root"}
