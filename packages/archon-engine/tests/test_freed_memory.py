"""Freed memory stays with the process, and the user's own settings win."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from archon_engine.freed_memory import VARIABLES, keep_freed_memory

OPTION = "actor.archon.keep_freed_memory"
PAGES = 16384  # 64 MiB, more than glibc's largest threshold


PROGRAM = """
import resource
import torch
from archon_engine.freed_memory import keep_freed_memory

(decision,) = keep_freed_memory("option", {})
faults = []
for _ in range(9):
    torch.ones(PAGES * 1024)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[3])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    """In a fresh process: holes in a used heap can make it grow again."""
    program = PROGRAM.replace("PAGES", str(PAGES))
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(found.stdout) < PAGES


@pytest.mark.parametrize("variable", VARIABLES)
def test_settings_of_the_user_stay(variable: str) -> None:
    (decision,) = keep_freed_memory(OPTION, {variable: "1"})
    assert decision.effective == "unchanged"
    assert variable in decision.reason
