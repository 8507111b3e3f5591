"""The process of an inference server: ``python -m archon_ray.server SERVER.json`` starts it and announces it.

It ends when the actor that has started it ends, which Ray does with the run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from archon_core.errors import USER_ERROR, ArchonError
from archon_core.serving.server_agent import ServerAgent
from archon_ray.machine import NODE_ADDRESS

NUMBER = "ARCHON_SERVER_NUMBER"
"""Environment variable of the process: the number of its server."""


@dataclass(frozen=True)
class Servers:
    """What the processes of servers need to know. The launcher writes it before it starts them.

    Attributes:
        source: the run's YAML file.
        overrides: of the file.
        folder: the run folder.
        environment: variables of every server.
    """

    source: str
    overrides: Sequence[str]
    folder: str
    environment: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Servers:
        """Read it."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def main(path: str) -> int:
    """Run one server."""
    parent = os.getppid()
    servers = Servers.read(Path(path))
    agent = ServerAgent(
        servers.source,
        servers.overrides,
        servers.folder,
        int(os.environ[NUMBER]),
        host=os.environ[NODE_ADDRESS],
        environment=servers.environment,
        has_run_ended=lambda: os.getppid() != parent,
    )
    return agent.run()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except ArchonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
