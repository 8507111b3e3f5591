"""Private torch APIs for process groups in servers, which have archon-core and torch alone.

As in ``archon_engine.compat``, each entry states the torch versions it was seen on and the condition for its removal.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist


def gloo_group_at(address: str, store: Any, rank: int, size: int, limit: timedelta) -> Any:
    """A gloo group whose connections of this member use an address of this machine.

    The public constructor has no such argument: it reads GLOO_SOCKET_IFNAME, which is one for the whole process, while
    groups to servers on this and on other machines need different interfaces. The options of gloo are private in 2.11
    to 2.13. Use them without underscores once torch documents them.
    """
    options = dist.ProcessGroupGloo._Options()
    options._timeout = limit
    options._threads = 2  # as the public constructor
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(store, rank, size, options)
