"""What may stand between two machines: hosts that refuse, that never answer, or that lack a program."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from tests.launcher.remote.conftest import BIN, There
from tests.runs import mmlaunch

from mmlaunch.cli import main
from mmlaunch.errors import MachineError
from mmlaunch.remote import forward, records, submit
from mmlaunch.remote.host import Host, ask, quoted, run, ssh
from mmlaunch.remote.submit import look, send


def host(there: There, name: str = "there", program: str = "mmlaunch") -> Host:
    return Host(name, str(there.projects / "a b"), program)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("nowhere.invalid", "nowhere.invalid: there is no host of this name (.*); write its address, or an alias"),
        ("stranger", "stranger: it does not let you in without a password (.*); add your key: ssh-add, ssh-copy-id st"),
        ("unknown", "unknown: its host key is not known here (.*); type ssh unknown once"),
        ("closed", "closed: it does not answer (.*); check the network"),
        ("silent", "silent: it does not answer (.*); check the network"),
    ],
)
def test_what_ssh_refuses_is_explained(there: There, name: str, right: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMLAUNCH_SSH", f"ssh -F {there.config} -o ConnectTimeout=1")
    before, after = right.split(".*")
    with pytest.raises(MachineError) as refused:
        ask(host(there, name), "true\n", 30)
    assert str(refused.value).startswith(before) and after in str(refused.value)


def test_no_ssh_and_no_mmlaunch(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    look(host(there))
    for what in (look, lambda one: run(one, ["status"], {})):
        with pytest.raises(MachineError, match=r"there: there is no program nolaunch .*; install it there, or write"):
            what(host(there, program="nolaunch"))
    with pytest.raises(MachineError, match="cannot create directory"):
        look(Host("there", "/proc/nowhere", "mmlaunch"))
    monkeypatch.setenv("MMLAUNCH_SSH", "/nowhere/ssh")
    ssh.cache_clear()
    with pytest.raises(MachineError, match=r"/nowhere/ssh cannot be run .*; install the client of OpenSSH"):
        look(host(there))


def test_another_version_there_is_said(there: There, small: Path, own_home: Path) -> None:
    older = there.folder / "older"
    older.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "mmlaunch, version 0.0.1"; else exec {BIN}/mmlaunch "$@"; fi\n'
    )
    older.chmod(0o755)
    profile = own_home / "config" / "mmlaunch" / "clusters" / "there.yaml"
    profile.write_text(f"{profile.read_text()}host_program: {older}\n")
    done = mmlaunch("submit", small, "--cluster", "there", "--dry-run")
    assert done.returncode == 0 and "note: there has mmlaunch 0.0.1, and this is" in done.stderr, done


def test_a_host_that_does_not_answer_holds_nothing_up(
    there: There, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forward, "PATIENCE", 1.0)
    records.write("far-1129-0001", host(there, "silent"), ())
    records.write("far-1129-0002", host(there, "nowhere.invalid"), ())
    began = time.monotonic()
    for arguments in (["status"], ["status", "--json"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        output, errors = capfd.readouterr()
        assert end.value.code == 0 and output.strip() in ("", "[]")
        assert sorted(errors.splitlines())[1] == "silent: no answer within 1 s; check it with: ssh silent"
        assert sorted(errors.splitlines())[0].startswith("nowhere.invalid: there is no host of this name")
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("rsync", [True, False])
def test_files_arrive_as_they_are(there: There, tmp_path: Path, rsync: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if rsync and shutil.which("rsync") is None:
        pytest.skip("needs rsync")
    monkeypatch.delattr(submit, "_with_tar" if rsync else "_with_rsync")
    text = tmp_path / "it's a recipe.yaml"
    text.write_bytes(b"\x00 \xff'\n")
    assert look(host(there)).rsync == (shutil.which("rsync") is not None)
    files = {"recipes/it's a recipe.yaml": text, "code/$HOME.py": text}
    place = send(host(there), files, rsync)
    assert place == send(host(there), files, rsync), "the same content has the same place"
    assert place.startswith("sent/it's a recipe-") and place.endswith("/recipes/it's a recipe.yaml")
    sent = there.projects / "a b" / place
    assert sent.read_bytes() == text.read_bytes()
    assert (sent.parents[1] / "code" / "$HOME.py").read_bytes() == text.read_bytes()


def test_a_broken_rsync_is_replaced(there: There, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rsync").write_text("#!/bin/sh\nexit 12\n")
    (tmp_path / "rsync").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    look(host(there))
    place = send(host(there), {"a.yaml": tmp_path / "rsync"}, rsync=True)
    assert (there.projects / "a b" / place).read_text() == "#!/bin/sh\nexit 12\n"


def test_the_users_own_way_to_share_connections_is_kept(there: There) -> None:
    assert "ControlMaster=auto" in ssh("there")
    with there.config.open("a") as file:
        file.write("Host own\n  ControlPath ~/.ssh/own-%C\n")
    assert "ControlMaster=auto" not in ssh("own") and "BatchMode=yes" in ssh("own")


def test_paths_for_a_shell() -> None:
    assert quoted("~/my runs") == "\"$HOME\"/'my runs'" and quoted("/a/$b") == "'/a/$b'"
