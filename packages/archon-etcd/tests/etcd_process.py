"""An etcd process for tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

from archon_core.errors import ServerError
from archon_etcd.registry import EtcdRegistry

MISSING = "" if shutil.which("etcd") else "etcd is not installed; on Debian: apt-get install etcd-server"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Etcd:
    """An etcd process with its own data folder."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        client, peer = f"http://{self.address}", f"http://127.0.0.1:{free_port()}"
        self.command = ["etcd", "--data-dir", str(folder), "--listen-client-urls", client]
        self.command += ["--advertise-client-urls", client, "--listen-peer-urls", peer]
        self.command += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                EtcdRegistry(self.address, "start").list()
                return
            except ServerError:
                assert self.process.poll() is None, "etcd ended"
                assert time.monotonic() < deadline, "etcd does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
