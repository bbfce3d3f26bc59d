"""Cluster profiles: what differs between sites, as data."""

import os
import re
from collections.abc import Collection, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mmlaunch.errors import Problem, RecipeError, UserError
from mmlaunch.load.recipe import validated
from mmlaunch.load.text import read_file
from mmlaunch.recipe.check import section_of
from mmlaunch.recipe.environment import check_settings
from mmlaunch.recipe.resources import Resources
from mmlaunch.recipe.scalars import Count, Duration, Line, MemorySize, OneOrMore, Word, Words, format_duration
from mmlaunch.recipe.section import Mistake, Section, mistake, rule
from mmlaunch.recipe.suggest import closest

VARIABLE = "MMLAUNCH_CLUSTER"

OWNED_OPTIONS = (
    "job-name", "output", "error", "nodes", "ntasks", "ntasks-per-node", "time", "requeue", "no-requeue", "signal",
    "open-mode",    "array", "wrap", "export", "chdir", "parsable", "wait", "kill-on-bad-exit", "cpus-per-task",
)  # fmt: skip
"""Options of sbatch and srun that the plan decides; both programs take the beginning of one for the whole."""

_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(=.*)?", re.DOTALL)

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")


def _option(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _OPTION.fullmatch(value)
    if not match:
        raise mistake(f"{value!r} is not an option", "write --exclusive or --licenses=matlab:1")
    given = match.group(1)
    if any(owned.startswith(given) for owned in OWNED_OPTIONS):
        raise mistake(f"--{given} is decided by mmlaunch", "remove it; the recipe's resources say how much")
    return value


def _settings(value: Any) -> Any:
    if isinstance(value, dict):
        check_settings("environment", value)
    return value


def _host(value: Any) -> Any:
    if isinstance(value, str) and not _HOST.fullmatch(value):
        right = "write me@login.cluster.org, or an alias of ~/.ssh/config, where ports and keys stand"
        raise mistake(f"{value!r} is no destination of ssh", right)
    return value


Host = Annotated[Line, BeforeValidator(_host)]
Option = Annotated[Line, BeforeValidator(_option)]
Options = Annotated[list[Option], OneOrMore()]
Lines = Annotated[list[Line], OneOrMore()]
Settings = Annotated[dict[str, str], BeforeValidator(_settings)]


PLUGINS = {"pyxis": ("slurm", "srun")}
"""Container kinds that one scheduler offers: its name, and the program that they are a plugin of."""


class Container(Section):
    """Ranks run inside this image."""

    kind: Literal["apptainer", "pyxis"]
    image: Annotated[Line, Field(examples=["/images/pytorch.sif"])]
    mounts: Lines = []
    options: Options = []


class PreSignal(Section):
    """The warning before the time limit."""

    name: Literal["USR1", "USR2", "TERM"] = "USR2"
    lead: Duration = 120
    """How long before the limit; Slurm may send it up to a minute earlier."""


class Cluster(Section):
    """One site."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {"env": "environment", "sbatch_options": "sbatch", "srun_options": "srun"}

    description: Line = ""
    executor: Word = "slurm"
    """The scheduler: the name of its folder in `schedulers`."""
    partition: Words | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    exclude: Word | None = None
    exclusive: bool = False
    gpus: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    """The option by which a job of this site gets its GPUs."""
    gpu_type: Word | None = None
    gpu_memory: MemorySize | None = None
    """Of one GPU, as it is sold: 80G. Left out, nobody knows whether a run fits."""
    gpus_in_node: Count | None = None
    """How many GPUs a node has. A job that asks for all of them also gets all of its memory."""
    cpus_per_rank: Count = 8
    memory: MemorySize | None = None
    """Memory of a node for a job. Left out: all of it if the job has the node for itself, else what the site gives."""
    max_time: Duration | None = None
    """The longest time limit that the partition takes."""
    python: Line | None = None
    """The interpreter of the ranks, such as the container's; left out: the one that runs mmlaunch."""
    modules: Lines = []
    setup: Lines = []
    """Shell lines that run before the ranks start, as they are."""
    container: Container | None = None
    environment: Settings = {}
    nccl: Settings = {}
    """NCCL settings without their prefix: `SOCKET_IFNAME: ib0`."""
    scratch: Line | None = None
    """A node-local folder for temporary files; `$USER` and `~` are understood."""
    sbatch: Options = []
    srun: Options = []
    signal: PreSignal = Field(default_factory=PreSignal)
    host: Host | None = None
    """The machine to submit from, if it is another one: what ssh is given, such as me@login.cluster.org."""
    host_folder: Line = "~/mmlaunch"
    """Where projects live there."""
    host_program: Line = "mmlaunch"
    """mmlaunch there: its path, where a plain shell does not find it."""
    host_cluster: Word | None = None
    """The profile there; left out: the usual one there."""

    @rule
    def _a_host_is_named(self) -> Iterator[Mistake]:
        for key in ("host_folder", "host_program", "host_cluster"):
            value = getattr(self, key)
            if self.host is None and value != Cluster.model_fields[key].default:
                yield (key,), value, mistake("this profile has no host", "write host: me@login.cluster.org")

    @rule
    def _plugins_need_their_scheduler(self) -> Iterator[Mistake]:
        kind = self.container.kind if self.container else ""
        executor, program = PLUGINS.get(kind, (self.executor, ""))
        if executor != self.executor:
            yield ("container", "kind"), kind, mistake(f"{kind} is a plugin of {program}", "write kind: apptainer")


def config_folder() -> Path:
    """The user's own templates and profiles."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "mmlaunch"


def profiles() -> dict[str, Path]:
    """Every profile by name; the user's come before those that ship with mmlaunch."""
    known: dict[str, Path] = {}
    for folder in _folders():
        try:
            paths = sorted(Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(".yaml"))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{folder} cannot be read ({error.strerror}); check its permissions") from None
        for path in paths:
            known.setdefault(path.stem, path)
    return known


def choose(name: str, executors: Collection[str] | None = None) -> tuple[str, Cluster]:
    """The profile of this name, or of this YAML file; its scheduler must be one of `executors`, if they are given."""
    if name.endswith((".yaml", ".yml")):
        return Path(name).stem, _load(Path(name), executors)
    known = profiles()
    if name not in known:
        near = closest(name, known)
        hint = f"did you mean {near}?" if near else f"write {config_folder()}/clusters/{name}.yaml"
        raise UserError(f"no cluster profile {name!r}; {hint} (known: {', '.join(sorted(known))})")
    return name, _load(known[name], executors)


def is_profile(path: str | Path) -> bool:
    """Whether a file is a cluster profile: it names an executor, as no recipe does. One that cannot be read is none."""
    try:
        node = read_file(Path(path), problems=[])
    except (RecipeError, OSError):
        return False
    return node.child("executor") is not None and node.child("objective") is None


def _load(path: Path, executors: Collection[str] | None) -> Cluster:
    def check(data: Any) -> Cluster:
        cluster = section_of(Cluster, data)
        if executors is not None and cluster.executor not in executors:
            near = closest(cluster.executor, executors)
            right = f"did you mean {near}?" if near else f"write one of: {', '.join(sorted(executors))}"
            raise RecipeError([Problem(("executor",), f"there is no scheduler {cluster.executor!r}", right)])
        return cluster

    return validated(read_file(path), check)


def problems(cluster: Cluster, wanted: Resources) -> list[Problem]:
    """What of a recipe's resources this profile rules out."""
    problems, time, gpus = [], wanted.time, wanted.gpus_per_node
    if cluster.max_time is not None and time > cluster.max_time:
        what = f"{time / 3600:g} hours are more than this cluster's longest limit ({cluster.max_time / 3600:g})"
        problems.append(Problem(("resources", "time"), what, "ask for less: the run is continued after each limit"))
    if time <= cluster.signal.lead:
        what = (
            f"{format_duration(time)} are over before a step: ranks are told to leave {_lead(cluster)} before the end"
        )
        problems.append(Problem(("resources", "time"), what, "ask for more, or lower signal.lead in the profile"))
    if gpus and cluster.gpus == "none":
        problems.append(Problem(("resources", "gpus_per_node"), "this cluster has no GPUs", "write gpus_per_node: 0"))
    return problems


def _lead(cluster: Cluster) -> str:
    return f"{format_duration(cluster.signal.lead)} (the profile's signal.lead)"


def gigabytes(cluster: Cluster) -> float | None:
    """The memory of one of its GPUs."""
    if cluster.gpu_memory is None:
        return None
    size, unit = int(cluster.gpu_memory[:-1]), cluster.gpu_memory[-1]
    return size * {"K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}[unit]


def _folders() -> Iterator[Path]:
    yield config_folder() / "clusters"
    shipped = resources.files("mmlaunch.templates").joinpath("clusters")
    if isinstance(shipped, Path):
        yield shipped
