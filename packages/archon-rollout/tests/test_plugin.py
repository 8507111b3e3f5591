import subprocess
import sys

from archon_core.plugins import CommandSpec, InferenceEngineSpec, registry
from archon_rollout import plugin
from archon_rollout.local_engine import LocalEngine


def test_the_plugin_is_found_and_its_specs_load():
    engine = registry().get(InferenceEngineSpec, "local")
    assert engine.load() is LocalEngine
    assert engine.letters == "", "it runs on the trainer's ranks and takes no sizes"
    assert registry().get(CommandSpec, "generate").load().__name__ == "generate"
    assert registry().origin(engine) == "archon-rollout"


def test_importing_the_plugin_and_the_command_imports_no_torch():
    code = (
        "import sys, archon_rollout.plugin as plugin, archon_rollout.cli\n"
        "plugin.archon_inference_engines(), plugin.archon_commands()\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_spec_says_in_a_line_what_it_is():
    for spec in (*plugin.archon_inference_engines(), *plugin.archon_commands()):
        assert spec.summary
        assert "\n" not in spec.summary
