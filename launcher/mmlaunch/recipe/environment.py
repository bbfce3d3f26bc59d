"""`env`: environment variables. A name passes a value through from the shell and is never written down."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from mmlaunch.recipe.scalars import CONTROL, listed
from mmlaunch.recipe.section import mistake, refuse

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASS|PASSWORD|PASSWD|PAT|AUTH|CREDENTIALS?)($|_)", re.IGNORECASE)
LAUNCHERS = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_", "TORCHELASTIC_")
"""The prefixes of the variables by which launchers inform their ranks."""
RANKS = frozenset({"RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})
_OWNED = RANKS | {"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER"}
SCRIPT = frozenset(
    {"run", "python", "rank", "opened", "step", "status", "verdict", "head_node"}
    | {"server", "hosts", "training", "serving", "parent", "line", "worst"}
    | {"when", "kill_wait", "clock", "end", "nap"}
)
"""The variables of the job scripts themselves."""
_SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{6,}|sk-[A-Za-z0-9_-]{8,})|gh[pousr]_[A-Za-z0-9]{8,}|github_pat_\w{8,}|"
    r"AKIA[A-Z0-9]{8,}|"
    r"xox[abp]-[\w-]*|glpat-[\w-]{8,}|(?<=hooks\.slack\.com/)\S+|(?<=/api/webhooks/)\S+|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)
"""Tokens of well-known services, and a user with a password in a URL."""
_ASSIGNED = re.compile(
    r"((?:^|[^A-Za-z0-9])(?:[A-Za-z0-9]+_)*(?:API_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASS|CREDENTIALS?)(?:_\w+)?"
    r"[\"']?\s*[=:]\s*[\"']?)([^\s\"',}\]]{4,})",
    re.IGNORECASE,
)
_SHELL = frozenset({"PATH", "HOME", "IFS", "ENV", "BASH_ENV", "SHELLOPTS", "BASHOPTS", "LD_PRELOAD", "PS4", "CDPATH"})


def looks_secret(name: str) -> bool:
    """Whether a variable of this name probably holds a secret."""
    return _SECRET.search(name) is not None


def hide_secrets(text: str) -> str:
    """A text in which what looks like a secret is replaced by stars of the same length."""
    text = _SECRET_VALUE.sub(lambda match: "*" * len(match.group()), text)
    return _ASSIGNED.sub(lambda match: match.group(1) + "*" * len(match.group(2)), text)


def check_name(name: str) -> str:
    """An environment variable that a recipe or a profile may set."""
    if not _NAME.fullmatch(name):
        raise mistake(f"{name!r} is not the name of a variable", "use letters, digits and _, e.g. WANDB_API_KEY")
    if name in _OWNED or name.startswith((*LAUNCHERS, "MMLAUNCH_")):
        raise mistake(f"{name} is set by mmlaunch itself", "remove it")
    if name in SCRIPT:
        raise mistake(f"{name} is a variable of the job script", "give yours another name")
    if name in _SHELL:
        raise mistake(f"{name} would change how the job script itself runs", "set it in the profile's setup lines")
    return name


def check_setting(name: str, value: str) -> None:
    """A setting is written into scripts: it may not be a secret, nor hold a newline."""
    check_name(name)
    if _SECRET.search(name) or _SECRET_VALUE.search(value):
        raise mistake(
            f"{name} looks like a secret, and its value would be written down",
            f"write {name} alone; its value comes from your shell",
        )
    if CONTROL.search(value):
        raise mistake(f"the value of {name} holds a newline or another control character", "write it on one line")


def check_settings(section: str, value: dict[str, Any], right: str = "write {0}: value") -> None:
    """Every setting of a mapping, each at its own place."""
    wrong = []
    for name, setting in value.items():
        try:
            if not isinstance(setting, str):
                raise mistake(f"{name} has no value", right.format(name))
            check_setting(str(name), setting)
        except PydanticCustomError as error:
            wrong.append(((name,), setting, error))
    refuse(section, wrong)


def _entries(value: Any) -> Any:
    if isinstance(value, dict):
        check_settings("env", value, "write {0}: value, or - {0} to pass it through")
        value = [f"{name}={setting}" for name, setting in value.items()]
    return listed(value)


def _once(entries: list[str]) -> list[str]:
    names = [entry.partition("=")[0] for entry in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise mistake(f"{twice[0]} stands here twice", "keep one of the two")
    return entries


def _entry(value: Any) -> str:
    if not isinstance(value, str):
        raise mistake("is not a name", "write WANDB_API_KEY, or NAME=value for what is no secret")
    name, equals, setting = value.partition("=")
    if equals:
        check_setting(name, setting)
    else:
        check_name(name)
    return str(value)


Env = Annotated[
    list[Annotated[str, BeforeValidator(_entry)]],
    BeforeValidator(_entries),
    AfterValidator(_once),
    WithJsonSchema({"type": ["array", "object", "string"], "items": {"type": "string"}}),
]
"""Names (`WANDB_API_KEY`), or settings that are no secret (`NCCL_DEBUG=INFO`)."""


def passed(entries: list[str]) -> list[str]:
    """The names whose values come from the shell."""
    return [entry for entry in entries if "=" not in entry]


def settings(entries: list[str]) -> dict[str, str]:
    """The variables whose values stand in the recipe."""
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)
