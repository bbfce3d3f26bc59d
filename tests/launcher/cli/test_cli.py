"""The command line: help with examples, exit codes, completion, plain text in a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.runs import mmlaunch

from mmlaunch.cli import commands

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = mmlaunch(command, "--help")
    assert done.returncode == 0 and f"mmlaunch {command}" in done.stdout.split("Examples:")[1]


def test_help_lists_every_command() -> None:
    done = mmlaunch("--help")
    assert done.returncode == 0 and all(f"  {name}" in done.stdout for name in commands())
    assert mmlaunch("--version").stdout.startswith("mmlaunch, version ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["sumbit"], 2, "did you mean submit?"),
        (["validate"], 2, "Missing argument"),
        (["validate", "nowhere.yaml"], 2, "no such file"),
        (["submit", str(ROOT / "recipes/quickstart.yaml"), "-s", "optim.lr", "1e-6"], 2, "write -s optim.lr=1e-6"),
        (["status", "nowhere"], 3, "no run 'nowhere'"),
        (["logs", "nowhere"], 3, "no run 'nowhere'"),
        (["why", "nowhere"], 3, "no run 'nowhere'"),
        (["submit", "x.yaml", "--json", "--follow"], 2, "write to the same place"),
        (["render", str(ROOT / "recipes/quickstart.yaml"), "--cluster", "locl"], 2, "did you mean local?"),
    ],
)
def test_exit_codes(arguments: list[str], code: int, says: str) -> None:
    done = mmlaunch(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert says in done.stderr


def test_validate_as_json() -> None:
    done = mmlaunch("validate", "--json", ROOT / "recipes" / "quickstart.yaml", "-s", "optim.lr=fast", "-s", "sed=1")
    problems = json.loads(done.stdout)
    assert done.returncode == 2 and [problem["path"] for problem in problems] == ["optim.lr", "sed"]
    assert mmlaunch("validate", "--json", ROOT / "recipes" / "quickstart.yaml").stdout.strip() == "[]"


def test_nothing_is_coloured_in_a_pipe_and_nothing_written() -> None:
    done = mmlaunch("validate", ROOT / "recipes" / "quickstart.yaml", "-s", "optim.lr=fast")
    assert "\x1b" not in done.stderr + done.stdout
    assert mmlaunch("status").stdout.startswith("no runs in ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [("mmlaunch su", "submit"), ("mmlaunch submit --clu", "--cluster"), ("mmlaunch render x --cluster lo", "local"),
     ("mmlaunch status las", "last")],
)  # fmt: skip
def test_completion(words: str, expected: str) -> None:
    environment = {**os.environ, "_MMLAUNCH_COMPLETE": "bash_complete", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(words.count(" "))
    program = Path(sys.executable).parent / "mmlaunch"
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert f"plain,{expected}" in done.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = mmlaunch("completion", shell)
    assert done.returncode == 0 and "_MMLAUNCH_COMPLETE" in done.stdout
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


def test_a_full_output_is_no_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mmlaunch", "status"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 4 and "No space left" in done.stderr and "Traceback" not in done.stderr


def test_schema_is_json() -> None:
    schema = json.loads(mmlaunch("schema").stdout)
    assert {"extends", "name", "model", "data", "objective", "optim", "batch"} <= set(schema["properties"])


def test_doctor_says_what_it_found() -> None:
    done = mmlaunch("doctor", "--json")
    assert done.returncode in (0, 1)
    findings = json.loads(done.stdout)
    assert all(set(finding) == {"good", "what", "means"} for finding in findings) and len(findings) >= 3
    assert (done.returncode == 0) == all(finding["good"] for finding in findings)


def test_a_slurm_that_is_not_there_is_no_fault_of_a_local_machine(tmp_path: Path) -> None:
    for program in ("sbatch", "scontrol"):
        (tmp_path / program).write_text("#!/bin/sh\necho 'error: no controller' >&2\nexit 1\n")
        (tmp_path / program).chmod(0o755)
    away = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CONF": ""}
    for more, good in (({}, True), ({"MMLAUNCH_CLUSTER": "slurm"}, False)):
        findings = json.loads(mmlaunch("doctor", "--json", **away, **more).stdout)
        assert next(one["good"] for one in findings if one["what"] == "Slurm does not answer") == good


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ls"], "did you mean status?"),
        (["run", "x.yaml"], "did you mean submit?"),
        (["stop"], "did you mean cancel?"),
        (["recipes/quickstart.yaml"], "did you mean mmlaunch submit recipes/quickstart.yaml?"),
        (["submit", "x.yaml", "--dryrun"], "--dry-run"),
        (["validate", str(ROOT / "recipes/quickstart.yaml"), "-s", "extends=x.yaml"], "extends stands in a file"),
        (["status", "a/\x1b[31mb"], "a/\ufffd[31mb"),
    ],
)
def test_what_people_type_who_come_from_elsewhere(arguments: list[str], says: str) -> None:
    done = mmlaunch(*arguments)
    assert done.returncode in (2, 3) and says in done.stderr and "\x1b" not in done.stderr


def test_help_is_a_command_too() -> None:
    assert mmlaunch("help").stdout == mmlaunch("--help").stdout
    assert mmlaunch("help", "submit").stdout == mmlaunch("submit", "--help").stdout


def test_a_closed_output_is_an_error_without_a_traceback() -> None:
    command = f"{sys.executable} -m mmlaunch status >&-"
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 4 and done.stderr == "mmlaunch: standard output is closed\n"


@pytest.mark.parametrize(
    ("override", "says", "never"),
    [
        ("optim.name=adamw", "optim.name: unknown key; known here: lr", "did you mean"),
        ("objective=grpq", "did you mean grpo?", "orpo?"),
        ("objective=dpoo", "did you mean dpo?", "grpo?"),
        ("env=[PROXY=http://me:swordfish@host]", "PROXY looks like a secret", "swordfish"),
        ("env=[HF_TOKEN=hf_abcdefghij]", "HF_TOKEN looks like a secret", "hf_abcdefghij"),
        ("deepspeed.optimizer_states=bf16", "bf16 states do not go with precision fp32", "Traceback"),
    ],
)
def test_mistakes_are_told_without_wrong_guesses_and_secrets(override: str, says: str, never: str) -> None:
    done = mmlaunch("validate", ROOT / "recipes" / "quickstart.yaml", "-s", override)
    assert done.returncode == 2 and says in done.stderr and never not in done.stderr


def test_lines_are_counted_as_editors_count_them(tmp_path: Path) -> None:
    recipe = tmp_path / "odd.yaml"
    recipe.write_text(
        f'extends: {ROOT}/recipes/quickstart.yaml\nenv: ["NOTE=a\u2028b\u2029c"]\nname: odd\noptim: {{lr: fast}}\n'
    )
    done = mmlaunch("validate", recipe)
    assert f"{recipe}:4:13: optim.lr" in done.stderr and "   4 | optim: {lr: fast}" in done.stderr
    recipe.write_text("name: odd\noptim:\n \u00a0lr: 1e-3\n")
    done = mmlaunch("validate", recipe)
    assert f"{recipe}:3:2: " in done.stderr and "U+00A0" in done.stderr


def test_files_that_extend_the_same_files_twice_are_read_once(tmp_path: Path) -> None:
    """Thirty levels of two each would be a billion reads."""
    (tmp_path / "0.yaml").write_text(f"extends: {ROOT}/recipes/quickstart.yaml\n")
    for level in range(1, 31):
        (tmp_path / f"{level}.yaml").write_text(f"extends: [{level - 1}.yaml, {level - 1}.yaml]\n")
    assert mmlaunch("validate", tmp_path / "30.yaml").returncode == 0


@pytest.mark.parametrize(("limit", "lead", "told"), [("90s", "2m", True), ("150s", "2m", True), ("10m", "2m", False)])
def test_a_time_limit_without_time_for_a_step_is_told(small: Path, limit: str, lead: str, told: bool) -> None:
    """At `validate`, by the usual profile as well as by one that is named; a limit below the lead is refused there."""
    profile = small.parent / "site.yaml"
    profile.write_text(f"executor: local\nsignal: {{lead: {lead}}}\n")
    small.write_text(small.read_text().replace("time: 10m", f"time: {limit}"))
    usual = mmlaunch("validate", small, MMLAUNCH_CLUSTER=str(profile))
    assert usual.returncode == 0 and ("resources.time" in usual.stdout) is told, usual.stdout + usual.stderr
    named = mmlaunch("validate", small, "--cluster", profile)
    assert named.returncode == (2 if limit == "90s" else 0)
    assert ("resources.time" in named.stdout + named.stderr) is told
