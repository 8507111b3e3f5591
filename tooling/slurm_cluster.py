"""Starts a real SLURM of three nodes on this machine, runs a command in it, and ends it: ``slurm_cluster.py COMMAND``.

Needs root and Debian's packages slurm-wlm and munge, which it installs if they are missing. The nodes are three
``slurmd`` with different names and ports. The command finds the cluster by ``SLURM_CONF``; ``ARCHON_TEST_SLURM`` is the
folder with all pid files and logs. Without root or the packages it says why and exits with code 77.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

NODES = ("n1", "n2", "n3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "squeue", "scontrol")
PACKAGES = ("slurm-wlm", "munge")
FOLDER = "ARCHON_TEST_SLURM"
UNAVAILABLE = 77
READY_SECONDS = 30

CONFIG = """\
ClusterName=archon
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until credentials have expired, two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
SlurmctldTimeout=30
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=300
PropagateResourceLimits=NONE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP OverSubscribe=YES
"""


def explain_missing() -> str:
    """Why no cluster can start here; empty if one can."""
    if os.geteuid() != 0:
        return "found a user other than root; the nodes of a test cluster share this machine, which needs root"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if not missing:
        return ""
    packages = " ".join(PACKAGES)
    if shutil.which("apt-get") is None:
        return f"found no {', '.join(missing)}; install {packages}"
    command = f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {packages}"
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(["bash", "-c", command], env=quiet, capture_output=True, text=True)
    return f"cannot install {packages}: {done.stderr[-300:]}" if done.returncode else ""


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class SlurmCluster:
    """A cluster whose files are in ``folder``. ``start`` raises RuntimeError with a log if a daemon does not start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "slurm.conf"
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(self.config), FOLDER: str(folder)}

    def start(self) -> None:
        """Start munged, the controller and the nodes, and wait until all nodes are idle."""
        for name in ("log", "state"):
            (self.folder / name).mkdir(parents=True)
        host = socket.gethostname()
        ports = _free_ports(1 + len(NODES))
        node = "NodeName={} NodeHostname={} NodeAddr=127.0.0.1 Port={} CPUs=4 RealMemory=4000 State=UNKNOWN"
        nodes = "\n".join(node.format(name, host, port) for name, port in zip(NODES, ports[1:], strict=True))
        text = CONFIG.format(host=host, folder=self.folder, controller_port=ports[0], nodes=nodes)
        self.config.write_text(text, encoding="utf-8")
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{name}={self.folder / file}" for name, file in files.items()]
        self._daemon(["munged", "--force", *options, f"--log-file={self.folder / 'log' / 'munged.log'}"])
        self._daemon(["slurmctld", "-c", "-f", str(self.config)])
        for name in NODES:
            self.start_node(name)
        self.wait_for_idle(NODES)

    def start_node(self, name: str) -> None:
        """Start the daemon of one node."""
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        self._daemon(["slurmd", "-N", name, "-f", str(self.config)])

    def wait_for_idle(self, nodes: Sequence[str]) -> None:
        """Wait until nodes accept jobs."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            command = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
            found = subprocess.run(command, env=self.environment, capture_output=True, text=True)
            states = dict(line.split() for line in found.stdout.splitlines())
            if all(states.get(name) in ("idle", "mixed", "allocated") for name in nodes):
                return
            if time.monotonic() > deadline:
                log = (self.folder / "log" / "slurmctld.log").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"nodes are not ready: {states} {found.stderr}\n{log[-2000:]}")
            time.sleep(0.1)

    def daemon(self, name: str) -> int:
        """The daemon of a node, which may be dead."""
        return int((self.folder / f"slurmd-{name}.pid").read_text(encoding="utf-8"))

    def processes_of(self, name: str) -> list[int]:
        """The daemon of a node and the parents of its job steps (``slurmstepd``), which live on without the daemon."""
        log = str(self.folder / "log" / f"slurmd-{name}.log")
        found = []
        with contextlib.suppress(OSError, ValueError):
            daemon = self.daemon(name)
            found = [daemon] if "slurmd" in Path(f"/proc/{daemon}/cmdline").read_text(encoding="utf-8") else []
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(process.name)
                if "slurmstepd" in (process / "comm").read_text(encoding="utf-8"):
                    used = [os.readlink(entry) for entry in (process / "fd").iterdir()]
                    found += [pid] if log in used else []
        return list(dict.fromkeys(found))

    def stop(self) -> None:
        """End all jobs and daemons."""
        subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], env=self.environment, capture_output=True)
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True)
        time.sleep(0.5)
        for name in NODES:
            for pid in self.processes_of(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for name in ("slurmctld.pid", "munged.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((self.folder / name).read_text(encoding="utf-8")), signal.SIGTERM)

    def _daemon(self, command: list[str]) -> None:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with code {done.returncode}: {done.stderr}{done.stdout}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def main(command: Sequence[str]) -> int:
    """Run ``command`` in a new cluster; returns its exit code."""
    if missing := explain_missing():
        print(f"no SLURM: {missing}", file=sys.stderr)
        return UNAVAILABLE
    folder = Path(tempfile.mkdtemp(prefix="archon-slurm-"))
    cluster = SlurmCluster(folder)
    try:
        cluster.start()
        return subprocess.run(command, env=cluster.environment).returncode
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
