"""One rank of a storm's run, with the arguments of ``archon``; starts in the folder of the storm."""

from __future__ import annotations

import sys
from pathlib import Path

from archon_core.cli.main import main
from async_weather.run import prepare_rank
from weather.records import Log

if __name__ == "__main__":
    folder = Path.cwd()
    prepare_rank(folder, Log(folder / "trainer.jsonl"))
    main(sys.argv[1:])
