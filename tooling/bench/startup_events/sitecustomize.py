"""Times the phases of `archon train` in every process that inherits PYTHONPATH; see ``tooling/bench/startup.py``.

Python imports this module at its start. It wraps functions of modules as they are imported, and times the import of
torch. Each finished phase is one line of JSON in the file that ARCHON_STARTUP_EVENTS names.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import json
import os
import sys
import time

TIMED = {
    "archon_core.cli.main": {"main": "command"},
    "archon_train.experiment": {"load_config": "configuration"},
    "archon_train.preflight": {"plan_run": "plan"},
    "archon_train.cli.training": {"run_training": "training"},
    "torch.distributed.distributed_c10d": {"init_process_group": "process group"},
    "archon_engine.engine": {"ArchonEngine.initialize": "model", "ArchonEngine.train_batch": "update"},
    "archon_rollout.local_engine": {"LocalEngine.generate": "rollout"},
}
"""Module -> function or method -> phase."""

IMPORTED = {"torch": "import torch", "transformers": "import transformers", "datasets": "import datasets"}


class Recorder:
    """Appends phases to the file: begin and end in seconds since the epoch, and the seconds of phases inside.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._inside: list[float] = []

    def begin(self) -> float:
        self._inside.append(0.0)
        return time.time()

    def end(self, phase: str, begin: float) -> None:
        end, inside = time.time(), self._inside.pop()
        if self._inside:
            self._inside[-1] += end - begin
        row = {"pid": os.getpid(), "parent": os.getppid(), "phase": phase, "begin": begin, "end": end, "inside": inside}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def timed(self, function, phase):
        @functools.wraps(function)
        def wrapper(*args, **keywords):
            begin = self.begin()
            try:
                return function(*args, **keywords)
            finally:
                self.end(phase, begin)

        return wrapper


class Finder(importlib.abc.MetaPathFinder):
    """Wraps the functions of ``TIMED`` once their module is executed.

    Args:
        recorder: for the phases.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._busy: set[str] = set()

    def find_spec(self, name, path=None, target=None):
        if (name not in TIMED and name not in IMPORTED) or name in self._busy:
            return None
        self._busy.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._busy.discard(name)
        if spec is not None and spec.loader is not None:
            self._wrap(spec.loader, name)
        return spec

    def _wrap(self, loader, name: str) -> None:
        execute = loader.exec_module

        def exec_module(module) -> None:
            begin = self._recorder.begin()
            try:
                execute(module)
            finally:
                self._recorder.end(IMPORTED.get(name, "other imports"), begin)
            for path, phase in TIMED.get(name, {}).items():
                holder, attribute = module, path
                if "." in path:
                    owner, attribute = path.split(".")
                    holder = getattr(module, owner)
                setattr(holder, attribute, self._recorder.timed(getattr(holder, attribute), phase))

        loader.exec_module = exec_module


if file := os.environ.get("ARCHON_STARTUP_EVENTS"):
    recorder = Recorder(file)
    recorder.end("interpreter", recorder.begin())
    sys.meta_path.insert(0, Finder(recorder))
