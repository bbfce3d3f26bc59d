"""A real Slurm on this machine: munge, MariaDB, slurmdbd, slurmctld and four slurmd with eight fake GPUs each.

`python -m tests.slurm.cluster` starts one and prints what to export; it ends with Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "mariadbd", "mysql_install_db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
INSTALL = "apt-get install -y --no-install-recommends slurm-wlm slurmdbd munge mariadb-server"
NODES, GPUS, CPUS = 4, 8, 8
PATIENCE = 60.0

SLURM_CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CryptoType=crypto/munge
SlurmctldPort={ctld}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmdLogFile={folder}/%n.log
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=300
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
JobAcctGatherType=jobacct_gather/none
NodeName=node[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} \
RealMemory=8000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=gentle Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""

DBD_CONF = """\
AuthType=auth/munge
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""


def missing() -> list[str]:
    """The programs that a cluster needs and this machine lacks."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


@dataclass
class SlurmCluster:
    """One cluster in one folder; everything that it starts, it ends."""

    folder: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    started_munge: bool = False

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def start(self) -> None:
        """From nothing to four idle nodes."""
        self._munge()
        self._configure()
        self._database()
        self.start_dbd()
        self.run("sacctmgr", "-i", "add", "cluster", self.name)
        self.start_ctld()
        for number in range(1, NODES + 1):
            self.start_node(number)
        self._until(lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == str(NODES), "idle nodes")

    def stop(self) -> None:
        """End every process of the cluster, jobs included."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--user=root", check=False)
            time.sleep(0.5)
        for daemon in reversed(list(self.daemons.values())):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGTERM)
        for daemon in reversed(list(self.daemons.values())):
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()
        for pid in _processes_naming(str(self.folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        munge = Path("/run/munge/munged.pid")
        if (
            self.started_munge and munge.exists() and not list(_processes_naming("slurmctld\0"))
        ):  # no other cluster needs it
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(munge.read_text()), signal.SIGTERM)

    @property
    def name(self) -> str:
        return "test" + "".join(c for c in self.folder.name if c.isalnum()).lower()

    def start_dbd(self) -> None:
        self._daemon("slurmdbd", "slurmdbd", "-D")
        self._until(lambda: _listens(self.ports["dbd"]), "slurmdbd")

    def start_ctld(self) -> None:
        self._daemon("slurmctld", "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        self._until(lambda: "UP" in self.run("scontrol", "ping", check=False), "slurmctld")

    def start_node(self, number: int) -> None:
        self._daemon(f"node{number}", "slurmd", "-D", "-N", f"node{number}", "-f", str(self.folder / "slurm.conf"))

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """The end of a daemon."""
        daemon = self.daemons.pop(name)
        os.killpg(daemon.pid, number)
        daemon.wait()

    def kill_node(self, name: str) -> None:
        """As if its power went: slurmd and all that runs on it; and as if the controller had waited SlurmdTimeout."""
        self.kill(name)
        all_of_them: set[int] = set()
        while new := self._on(name) - all_of_them:  # none sees another one die: first all stand still
            all_of_them |= new
            _send(signal.SIGSTOP, new)
        _send(signal.SIGKILL, all_of_them)
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=killed")

    def _on(self, name: str) -> set[int]:
        """The processes of jobs on a node, and the slurmstepd of each."""
        there = {*_processes_naming(f"SLURMD_NODENAME={name}\0")} & {*_processes_naming(str(self.folder))}
        return ({*map(_parent, there)} | there) - {0, 1}

    def revive_node(self, name: str) -> None:
        self.start_node(int(name.removeprefix("node")))
        self.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)

    def run(self, *command: str, check: bool = True, timeout: float = 30) -> str:
        """A client command; its output."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=timeout
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def _configure(self) -> None:
        names = ["ctld", "dbd", "sql"]
        free = _free_ports(len(names) + NODES)
        self.ports = dict(zip(names, free, strict=False))
        first = free[len(names)]
        values = {**self.ports, "folder": self.folder, "name": self.name, "host": socket.gethostname(), "nodes": NODES,
                  "first": first, "last": first + NODES - 1, "cpus": CPUS, "gpus": GPUS}  # fmt: skip
        (self.folder / "state").mkdir()
        for number in range(GPUS):
            (self.folder / f"nvidia{number}").touch()
        for number in range(1, NODES + 1):
            (self.folder / f"node{number}").mkdir()
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**values))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/nvidia[0-{GPUS - 1}]\n")
        (self.folder / "slurmdbd.conf").write_text(DBD_CONF.format(**values))
        (self.folder / "slurmdbd.conf").chmod(0o600)

    def _munge(self) -> None:
        """One munge serves every cluster of a machine: clients look for it at its usual socket."""
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
            return
        key, run = Path("/etc/munge/munge.key"), Path("/run/munge")
        if not key.exists():
            key.write_bytes(os.urandom(1024))
            key.chmod(0o400)
        run.mkdir(exist_ok=True)
        for path in (key, run, Path("/var/lib/munge"), Path("/var/log/munge")):
            path.mkdir(exist_ok=True) if not path.exists() else None
            shutil.chown(path, "munge", "munge")
        subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged"], check=True)
        self.started_munge = True

    def _database(self) -> None:
        data, port, sock = self.folder / "mysql", self.ports["sql"], self.folder / "mysql.sock"
        install = ["mysql_install_db", f"--datadir={data}", "--auth-root-authentication-method=normal", "--user=root"]
        subprocess.run(install, check=True, capture_output=True)
        options = [f"--datadir={data}", f"--port={port}", "--bind-address=127.0.0.1", f"--socket={sock}", "--user=root"]
        self._daemon("mariadbd", "mariadbd", "--no-defaults", *options)
        self._until(lambda: sock.exists() and _listens(port), "MariaDB")
        sql = "CREATE DATABASE slurm_acct;"
        for user in ("'slurm'@'%'", "'slurm'@'localhost'"):
            sql += f"CREATE USER {user} IDENTIFIED BY 'slurm'; GRANT ALL ON slurm_acct.* TO {user};"
        self.sql(sql)

    def sql(self, statements: str) -> str:
        """Run statements on the accounting's database, past slurmdbd."""
        command = ["mariadb", f"--socket={self.folder / 'mysql.sock'}", "-u", "root", "-N", "-e", statements]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _daemon(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def _until(self, right: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(RuntimeError, subprocess.SubprocessError):
                if right():
                    return
            dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if dead:
                raise RuntimeError(f"{dead[0]} ended: {(self.folder / f'{dead[0]}.out').read_text()[-2000:]}")
            time.sleep(0.1)
        raise RuntimeError(f"no {what} after {PATIENCE:.0f} s")


def _free_ports(count: int) -> list[int]:
    """Free ports in a row, below the ephemeral range, so that several clusters fit on one machine."""
    start = 17_000 + os.getpid() % 500 * 20
    for low in range(start, 30_000, count):
        if not any(_listens(port) for port in range(low, low + count)):
            return list(range(low, low + count))
    raise RuntimeError("no free ports")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _processes_naming(text: str) -> Iterator[int]:
    """Processes whose command line or environment names this folder: slurmstepd and what it started."""
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            said = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in said and int(proc.name) != os.getpid():
            yield int(proc.name)


def _parent(pid: int) -> int:
    """0 where it has ended meanwhile."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _send(number: signal.Signals, pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def running() -> Iterator[SlurmCluster]:
    """A cluster for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        cluster = SlurmCluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def main() -> None:
    if lacking := missing():
        sys.exit(f"this machine lacks {', '.join(lacking)}; as root: {INSTALL}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends what it started, however it is told to end
    with running() as cluster:
        print(f"export SLURM_CONF={cluster.folder}/slurm.conf", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
