"""Two hosts on this machine: network namespaces with separate loopback interfaces, joined by a cable (veth)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

RESOLVER = Path("/etc/netns")
"""``ip netns exec`` shows ``/etc/netns/NAME/hosts`` as ``/etc/hosts``."""

NETWORK_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "ARCHON_SOCKET_IFNAME")


@dataclass(frozen=True)
class Host:
    """A host.

    Attributes:
        name: host name, which the host itself resolves to its loopback address, as Debian's ``/etc/hosts`` does.
        address: on the cable.
        interface: of the cable.
    """

    name: str
    address: str
    interface: str

    def start(
        self, *command: str, environment: Mapping[str, str] | None = None, output: Path
    ) -> subprocess.Popen[bytes]:
        """Start a command on this host, with both streams in a file."""
        outer = {name: value for name, value in os.environ.items() if name not in NETWORK_VARIABLES}
        with output.open("wb") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                env={**outer, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )


def explain_missing() -> str:
    """Why there can be no hosts here; empty if there can."""
    if shutil.which("ip") is None:
        return "found no ip; install iproute2"
    probe = f"archon-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"found no permission for network namespaces ({made.stderr.strip()}); run as root, outside of a sandbox"
    try:
        cable = ["ip", "-n", probe, "link", "add", "name", "end0", "type", "veth", "peer", "name", "end1"]
        made = subprocess.run(cable, capture_output=True, text=True)
        return f"found no virtual cables ({made.stderr.strip()})" if made.returncode else ""
    finally:
        subprocess.run(["ip", "netns", "del", probe], check=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else."""
    hosts = [Host(f"archon-{os.getpid()}-{n}", f"10.88.0.{n + 1}", f"cable{n}") for n in range(2)]
    with contextlib.ExitStack() as stack:
        for host in hosts:
            _ip("netns", "add", host.name)
            stack.callback(_ip, "netns", "del", host.name)
            folder = RESOLVER / host.name
            folder.mkdir(parents=True)
            stack.callback(shutil.rmtree, folder)
            lines = ["127.0.0.1 localhost", f"127.0.1.1 {host.name}"]
            lines += [f"{other.address} {other.name}" for other in hosts if other is not host]
            (folder / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")
        first, second = hosts
        cable = ("link", "add", "name", first.interface, "type", "veth", "peer", "name", second.interface)
        _ip("-n", first.name, *cable, "netns", second.name)
        for host in hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", host.name, "link", "set", host.interface, "up")
        yield first, second


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
