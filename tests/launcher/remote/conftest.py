"""Another machine for tests: a real sshd on loopback, with its own folders for projects, runs and configuration."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmlaunch.remote.host import ssh

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class There:
    """The machine that ssh reaches as `there`. `stranger` and `unknown` are the same with a wrong key or without its
    host key; `silent` and `closed` do not answer."""

    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def projects(self) -> Path:
        return self.folder / "projects"

    @property
    def config(self) -> Path:
        """The ssh configuration of the laptop."""
        return self.folder / "ssh_config"


def _key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _write(there: There, port: int, silent: int) -> None:
    folder = there.folder
    host_key, key = _key(folder / "host_key"), _key(folder / "key")
    (folder / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    settings = {
        "MMLAUNCH_RUNS": there.runs, "XDG_CONFIG_HOME": folder / "config", "OMP_NUM_THREADS": 1,
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }  # fmt: skip
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {host_key}\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
        f"SetEnv {' '.join(f'{name}={value}' for name, value in settings.items())}\n"
    )
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
    there.config.write_text(
        f"Host there\n  Port {port}\n  IdentityFile {key}\n"
        f"Host stranger\n  Port {port}\n  IdentityFile {_key(folder / 'other_key')}\n"
        f"Host unknown\n  Port {port}\n  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n"
        f"Host silent\n  Port {silent}\n"
        f"Host closed\n  Port {_free_port()}\n"
        f"Host there stranger unknown silent closed\n  HostName 127.0.0.1\n"
        f"Host *\n  User {getpass.getuser()}\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n"
    )


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[There]:
    if SSHD is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs sshd and ssh-keygen")
    there, port = There(tmp_path_factory.mktemp("there")), _free_port()
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        _write(there, port, silent.getsockname()[1])
        log = there.folder / "sshd.log"
        server = subprocess.Popen([SSHD, "-D", "-E", str(log), "-f", str(there.folder / "sshd_config")])
        until = time.monotonic() + 20
        while not log.exists() or "listening" not in log.read_text():
            assert server.poll() is None and time.monotonic() < until, log.read_text() if log.exists() else "no log"
            time.sleep(0.05)
        yield there
        server.terminate()
        server.wait()


@pytest.fixture
def there(sshd: There, monkeypatch: pytest.MonkeyPatch, own_home: Path) -> Iterator[There]:
    """The other machine without projects and runs, and a laptop with a profile for it."""
    for folder in (sshd.projects, sshd.runs):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(sshd.folder / "config", ignore_errors=True)
    profiles = own_home / "config" / "mmlaunch" / "clusters"
    profiles.mkdir(parents=True)
    profile = f"host: there\nhost_folder: {sshd.projects}\nhost_cluster: local\ngpus: none\n"
    (profiles / "there.yaml").write_text(profile)
    with tempfile.TemporaryDirectory(prefix="mm-") as sockets:
        monkeypatch.setenv("XDG_RUNTIME_DIR", sockets)
        monkeypatch.setenv("MMLAUNCH_SSH", f"{_recording_ssh(own_home)} -F {sshd.config}")
        ssh.cache_clear()
        yield sshd
        for path in Path(sockets).iterdir():
            command = ["ssh", "-F", str(sshd.config), "-o", f"ControlPath={path}", "-O", "exit", "there"]
            subprocess.run(command, check=False, capture_output=True)


def _recording_ssh(folder: Path) -> Path:
    """An ssh that notes its arguments, which every user of a machine can see, in `calls`."""
    path = folder / "recording-ssh"
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {folder}/calls\nexec ssh "$@"\n')
    path.chmod(0o755)
    return path
