"""Host lists of SLURM, such as ``n[1-3,7],gpu-[08-11]``, as host names. Pure.

``scontrol show hostnames`` does the same, but is not installed in every container.
"""

from __future__ import annotations

import itertools
import re

from archon_core.errors import ConfigError

MAX_HOSTS = 2**16
_ITEM = re.compile(r"(?:[^\[\],]|\[[^\[\]]*\])+")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def expand_hosts(text: str) -> list[str]:
    """The hosts of a list, in order.

    >>> expand_hosts("n[1-3,7],gpu-[08-10],login")
    ['n1', 'n2', 'n3', 'n7', 'gpu-08', 'gpu-09', 'gpu-10', 'login']

    Raises:
        ConfigError: the list is malformed, or has more than ``MAX_HOSTS`` hosts.
    """
    items = _ITEM.findall(text)
    if ",".join(items) != text:
        raise _malformed(text)
    hosts: list[str] = []
    for item in items:
        pieces = re.split(r"\[([^\[\]]*)\]", item)  # outside, inside, outside, ...
        choices = [_numbers(piece, text) if index % 2 else [piece] for index, piece in enumerate(pieces)]
        hosts += map("".join, itertools.islice(itertools.product(*choices), MAX_HOSTS + 1))
        if len(hosts) > MAX_HOSTS:
            raise ConfigError(f"host list {text!r}: found more than {MAX_HOSTS} hosts; shorten it")
    return hosts


def _numbers(inside: str, text: str) -> list[str]:
    numbers: list[str] = []
    for part in inside.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise _malformed(text)
        first, last = match.group(1), match.group(2) or match.group(1)
        if int(last) < int(first) or int(last) - int(first) > MAX_HOSTS:
            raise _malformed(text)
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return numbers


def _malformed(text: str) -> ConfigError:
    return ConfigError(f"host list {text!r}: cannot parse it; allowed are lists such as n[1-3,7],gpu-[08-11]")
