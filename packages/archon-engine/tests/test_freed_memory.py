"""Freed memory stays with the process, and the user's own settings win."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from archon_engine.freed_memory import VARIABLES, keep_freed_memory

OPTION = "actor.archon.keep_freed_memory"
PAGES = 16384  # 64 MiB, more than glibc's largest threshold


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    (decision,) = keep_freed_memory(OPTION, {})
    assert (decision.option, decision.requested) == (OPTION, "true")
    # Aligned blocks need a little more than was freed, so the heap grows a few times before it fits.
    for _ in range(6):
        torch.ones(PAGES * 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(PAGES * 1024)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < PAGES


@pytest.mark.parametrize("variable", VARIABLES)
def test_settings_of_the_user_stay(variable: str) -> None:
    (decision,) = keep_freed_memory(OPTION, {variable: "1"})
    assert decision.effective == "unchanged"
    assert variable in decision.reason
