"""vLLM's routes around a real model of transformers, so that a trainer's canary and log-probabilities agree with it.

As a file it is a stand-in for the interpreter of vLLM's environment: it takes the arguments of ``vllm serve``.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "archon-vllm" / "tests"))

import torch
from vllm_server import VllmServer

PATHS = [path for path in sys.path if path]


class ModelServer(VllmServer):
    """Starts with random weights, as vLLM does with ``--load-format dummy``.

    Attributes:
        spoil: changes tensors when they are loaded, after their checksums were computed.
    """

    def __init__(self, config_folder, *, port=0, token=""):
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(config_folder)
        torch.manual_seed(1)
        self.model = AutoModelForCausalLM.from_config(config).float().eval()
        self.spoil = lambda name, tensor: tensor
        super().__init__(dict(self.model.state_dict()), port=port, token=token)
        self.worker.updates._store._load = self.load
        self.computing = threading.Lock()

    def load(self, tensors):
        with torch.no_grad(), self.computing:
            found = {name: self.spoil(name, tensor) for name, tensor in tensors}
            unknown = self.model.load_state_dict(found, strict=False).unexpected_keys
            assert not unknown, unknown

    def next_token(self, prompt, ids, sampling, adapter):
        with torch.no_grad(), self.computing:
            logits = self.model(torch.tensor([[*prompt, *ids]])).logits[0, -1].double()
        if not sampling["temperature"]:
            token = int(logits.argmax())
            return token, float(logits.log_softmax(-1)[token])
        logprobs = (logits / sampling["temperature"]).log_softmax(-1)
        generator = torch.Generator().manual_seed((sampling["seed"] + len(ids)) % 2**31)
        token = int(torch.multinomial(logprobs.exp(), 1, generator=generator))
        return token, float(logprobs[token])


def interpreter(folder):
    """A program that runs this file, for ``vllm.python``."""
    program = Path(folder) / "python"
    lines = [f"#!{sys.executable}", "import sys", f"sys.path[:0] = {PATHS!r}", "import model_vllm_server as server"]
    program.write_text("\n".join([*lines, "server.main(sys.argv[1:])", ""]), encoding="utf-8")
    program.chmod(0o755)
    return program


def main(arguments):
    assert arguments[:3] == ["-m", "vllm.entrypoints.cli.main", "serve"], arguments
    options = dict(itertools.pairwise(arguments[4:]))
    assert options["--load-format"] == "dummy"
    assert "--skip-tokenizer-init" in arguments
    with ModelServer(arguments[3], port=int(options["--port"]), token=os.environ["VLLM_API_KEY"]):
        print("serving", flush=True)
        threading.Event().wait()
