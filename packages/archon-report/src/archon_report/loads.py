"""Expert loads for the heat map of a page: one byte per layer, expert and step."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from archon_core.run_files.expert_load import ExpertLoad

MOST_CELLS = 600_000
"""Most bytes of a heat map; of longer runs, fewer steps are shown."""

SCALE = 32
"""A byte is the load as a multiple of the mean of its layer, times this: up to 7.97, in steps of 0.03."""


def heat_map(loads: Sequence[ExpertLoad]) -> dict[str, Any]:
    """The data of a heat map: layers, number of experts, steps, and bytes in the order step, layer, expert.

    Layers that a step lacks, or that have other sizes, are 0.
    """
    layers = sorted({name for load in loads for name in load.layers}, key=lambda name: (len(name), name))
    experts = max(len(counts) for load in loads for counts in load.layers.values())
    most = max(1, MOST_CELLS // (len(layers) * experts))
    every = -(-len(loads) // most)
    shown = [load for place, load in enumerate(loads) if place % every == 0 or place == len(loads) - 1]
    cells = bytearray()
    for load in shown:
        for layer in layers:
            counts = list(load.layers.get(layer, ()))
            mean = sum(counts) / len(counts) if counts else 0
            ratios = [round(SCALE * count / mean) if mean else 0 for count in counts]
            cells += bytes(min(255, ratio) for ratio in ratios) + bytes(experts - len(counts))
    return {
        "layers": layers,
        "experts": experts,
        "steps": [load.step for load in shown],
        "scale": SCALE,
        "cells": base64.b64encode(bytes(cells)).decode("ascii"),
    }
