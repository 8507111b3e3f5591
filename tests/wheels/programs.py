"""Programs that tests run in fresh environments."""

IMPORT_ALL = """
import dataclasses, importlib, pkgutil, sys

name, *missing = sys.argv[1:]

from archon_core.contracts.spec import load_target
from archon_core.errors import ConfigError
from archon_core.plugins import SPEC_TYPES, registry

def needs_extra(error):
    return missing and f"pip install '{name.replace('_', '-')}[" in str(error)

package = importlib.import_module(name)
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name not in missing:
            raise
    except ConfigError as error:
        if not needs_extra(error):
            raise
targets = set()
for kind in SPEC_TYPES:
    for spec in registry().all(kind):
        names = {field.name for field in dataclasses.fields(spec)} - {"name", "source"}
        texts = [getattr(spec, name) for name in names]
        texts += [section.schema for section in spec.config]
        targets |= {text for text in texts if isinstance(text, str) and ":" in text and " " not in text}
for target in sorted(targets):
    try:
        load_target(target)
    except ConfigError as error:
        if not needs_extra(error):
            raise
print(len(targets))
"""
"""Imports every module of the package argv[1] and every target that an installed spec names; prints how many targets.

For want of what an extra would bring, modules may fail to import the top-level modules argv[2:], or raise an error that
names the extra."""

TRAIN = """
import sys

from archon_core import ArchonError, assemble
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import LossSums, OutputRequest


class NegativeLogLikelihood:
    request = OutputRequest(("logprobs",))

    def weights(self, batch):
        return {"token": float(batch.n_tokens)}

    def __call__(self, outputs, micro_batch):
        return LossSums({"token": -outputs["logprobs"].sum()})


family, backend = sys.argv[1:]
tiny = {
    "model_type": family,
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
config = EngineConfig(backend=backend, model_config=tiny)
try:
    engine = assemble(config)
    engine.initialize()
except ArchonError as error:
    sys.exit(f"error: {error}")
batch = Batch.from_sequences([[1, 2, 3, 7, 8, 9, 4], [4, 5, 6, 7]])
for _ in range(5):
    print(engine.train_batch(batch, NegativeLogLikelihood()).loss)
"""
"""Trains a tiny dense model of the family argv[1] on the layout argv[2] for five steps and prints the losses."""
