"""The versions of third-party packages that this release passed its tests with.

A copy, for installed wheels, of the run-time part of the repository's constraints/tested.txt; a test compares them.
``archon doctor`` reports where an installation differs.
"""

from __future__ import annotations

from collections.abc import Mapping

TESTED_VERSIONS: Mapping[str, str] = {
    "antlr4-python3-runtime": "4.13.2",
    "click": "8.4.2",
    "datasets": "5.2.0",
    "etcd3gw": "2.7.0",
    "jinja2": "3.1.6",
    "math-verify": "0.9.0",
    "msgpack": "1.2.4",
    "numpy": "2.4.6",
    "omegaconf": "2.4.0",
    "pluggy": "1.7.0",
    "prometheus-client": "0.26.0",
    "ray": "2.60.0",
    "reasoning-gym": "0.1.25",
    "rich": "15.0.0",
    "safetensors": "0.8.0",
    "starlette": "1.10.0",
    "swanlab": "0.10.3",
    "tensorboard": "2.21.0",
    "tokenizers": "0.23.3",
    "torch": "2.13.0",
    "trackio": "0.43.0",
    "transformers": "5.23.0",
    "typer": "0.24.2",
    "uvicorn": "0.54.0",
    "wandb": "0.31.0",
}
