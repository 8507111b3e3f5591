"""The addresses of this machine: those of its interfaces, the one on the way to another machine, the one for others.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import secrets
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ELSEWHERE = "192.0.2.1"
"""An address reserved for documentation (RFC 5737): nothing is sent there, but the system chooses a route to it."""

OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Where Linux says which ports outgoing connections take."""

LOWEST_PORT = 10_000
"""Below it many services have their ports."""

TRIES = 20

_IS_UP = 0x1
"""``IFF_UP`` of Linux and macOS."""

_OFFSETS = {socket.AF_INET: (4, 4), socket.AF_INET6: (8, 16)}
"""Family -> where its ``sockaddr`` has the address, and how many bytes it takes."""


@dataclass(frozen=True)
class InterfaceAddress:
    """An address of a network interface that is up.

    Attributes:
        name: of the interface, such as ``eth0``. An interface may have several addresses.
        address: IPv4 or IPv6.
    """

    name: str
    address: str

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.address)


class _IfAddrs(ctypes.Structure):
    """The beginning of C's ``struct ifaddrs``, which Linux and macOS share."""


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
]


def interface_addresses() -> list[InterfaceAddress]:
    """The addresses of all interfaces that are up, in the system's order; empty where C has no ``getifaddrs``."""
    library = ctypes.CDLL(None) if sys.platform != "win32" else None
    if library is None or not hasattr(library, "getifaddrs"):
        return []
    first = ctypes.POINTER(_IfAddrs)()
    if library.getifaddrs(ctypes.byref(first)) != 0:
        return []
    found = []
    try:
        entry = first
        while entry:
            one = entry.contents
            text = _address_text(one.address) if one.address and one.flags & _IS_UP else None
            if text is not None:
                found.append(InterfaceAddress(one.name.decode(), text))
            entry = one.next
    finally:
        library.freeifaddrs(first)
    return found


def _address_text(pointer: int) -> str | None:
    """The address in a ``sockaddr``; ``None`` for other families than IPv4 and IPv6."""
    start = ctypes.string_at(pointer, 2)
    # Linux begins with the family in two bytes; BSD with the length and the family in one byte each.
    family = int.from_bytes(start, sys.byteorder) if sys.platform == "linux" else start[1]
    if family not in _OFFSETS:
        return None
    offset, size = _OFFSETS[socket.AddressFamily(family)]
    return socket.inet_ntop(family, ctypes.string_at(pointer + offset, size))


def is_loopback(host: str) -> bool:
    """Whether a host is written as one that means this machine wherever it is used; does not resolve names.

    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "10.0.0.1", "node-0")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:  # a name
        return False


def is_this_machine(host: str) -> bool:
    """Whether a name or address means this machine; ``False`` for a name that does not resolve."""
    if is_loopback(host) or host == socket.gethostname():
        return True
    own = {one.address for one in interface_addresses()}
    with contextlib.suppress(OSError):
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
        return any(address in own or is_loopback(address) for address in found)
    return False


def address_towards(host: str, port: int = 9) -> str:
    """The address of this machine on the way to ``host``, which may be this machine. Sends nothing.

    Raises:
        OSError: ``host`` cannot be resolved, or no network leads there.
    """
    family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def own_address(*names: str) -> str:
    """An address of this machine that other machines may reach; the loopback address if it has no other.

    Args:
        names: of this machine, tried before its host name.
    """
    known = interface_addresses()
    for name in filter(None, (*names, socket.gethostname())):
        with contextlib.suppress(OSError):
            found = socket.gethostbyname(name)
            # A stale entry of /etc/hosts may name an address that the machine does not have.
            if not is_loopback(found) and (not known or _name_of(found, known) is not None):
                return found
    with contextlib.suppress(OSError):
        return address_towards(ELSEWHERE)
    others = [one.address for one in known if not one.is_loopback]  # a network without a default route
    others.sort(key=lambda address: ":" in address)  # IPv4 first, if there is any
    return next((address for address in others if not address.startswith("fe80")), "127.0.0.1")


def free_port(host: str = "") -> int:
    """A port that nobody uses at the moment, on an address of this machine; empty for all IPv4 addresses."""
    (port,) = free_ports(1, host)
    return port


def free_ports(count: int, host: str = "") -> list[int]:
    """Different ports that nobody uses at the moment, likewise.

    If possible, they lie below the range from which the system takes those of outgoing connections: otherwise, one of
    these could take a port before its server listens there.
    """
    with contextlib.ExitStack() as held:
        return [_bound(held, host) for _ in range(count)]


def _bound(held: contextlib.ExitStack, host: str) -> int:
    """Bind a socket to a free port, and leave it bound as long as ``held``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    first = _first_outgoing_port()
    drawn = [secrets.choice(range(LOWEST_PORT, first)) for _ in range(TRIES)] if first > LOWEST_PORT else []
    for port in (*drawn, 0):
        one = held.enter_context(socket.socket(family))
        with contextlib.suppress(OSError):  # somebody uses it
            one.bind((host, port))
            return int(one.getsockname()[1])
    raise OSError(f"found no free port on {host or 'this machine'}")


def _first_outgoing_port() -> int:
    """The first port of outgoing connections; 0 if the system does not tell."""
    try:
        return int(OUTGOING_PORTS.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def interface_of(address: str) -> str | None:
    """The interface with an address of this machine; ``None`` if there is none, or the system does not tell."""
    return _name_of(address, interface_addresses())


def _name_of(address: str, known: Sequence[InterfaceAddress]) -> str | None:
    return next((one.name for one in known if one.address == address.partition("%")[0]), None)
