"""Check numbers and speed on this machine's GPU and trace a step, within eight minutes, from a checkout as it is.

    python3 tooling/gpu/check.py [--cpu] [--json OUT] [--parts numbers,speed,trace] [--only 'numbers.engine/*'] ...

Needs Python 3.11 and torch 2.11 or newer, transformers, safetensors and pluggy, and no network. See ``command.py``.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # In place of this folder, with which a script's path begins.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from gpu.command import main

    sys.exit(main())
