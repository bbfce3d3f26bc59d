"""The rules of the house: layers, no cycles, one importer each, everything shipped, a light command line."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOTS = {"mmlaunch": ROOT / "launcher", "mmjobs": ROOT / "jobs"}
CONTRACT = ("mmlaunch.recipe", "mmlaunch.run", "mmlaunch.errors")
LAYERS = {
    "mmjobs": (
        ("main",), ("tasks",), ("inference",), ("train",), ("rollout", "checkpoint"), ("metrics",), ("engine",),
        ("objectives",), ("model",), ("rank",), ("data",),
    ),
    "mmlaunch": (
        ("__main__",), ("cli", "api", "attempt"), ("remote",), ("submit",), ("results",), ("monitor",), ("restart",),
        ("schedulers",), ("estimate",), ("load",), ("recipe",), ("run",), ("errors",),
    ),
}  # fmt: skip
"""The rooms of each package from top to bottom; one imports from those below it only. CONTRIBUTING.md draws them."""
HEAVY = {"torch", "deepspeed", "transformers", "peft", "numpy", "mmjobs", "safetensors", "PIL", "tensorboard"}
MAY_IMPORT = {("mmlaunch.results.pictures", "PIL"): "small pictures for a page, where it is installed"}
ONLY_IN: dict[str, str | tuple[str, ...]] = {
    "submitit": "mmlaunch.schedulers",
    "jinja2": (
        "mmlaunch.submit.render",
        "mmlaunch.results.report_page",
        "mmjobs.data.chat",
    ),  # the chat template's refusal is an error of jinja2
    "yaml": ("mmlaunch.load.text", "mmlaunch.load.syntax", "mmlaunch.recipe.resolved", "mmjobs.data.readers.card"),
    "transformers": ("mmjobs.model", "mmjobs.data"),
    "deepspeed": "mmjobs.engine",
    "peft": "mmjobs.model.adapters",
    "datasets": "mmjobs.data.readers.saved",
    "pyarrow": "mmjobs.data.readers.parquet",
    "openpyxl": "mmjobs.data.readers.xlsx",
    "torch.utils.tensorboard": "mmjobs.metrics.tensorboard",
    "tensorboard": "mmjobs.metrics.event_files",
    "math_verify": "mmjobs.rollout.rewards.expressions",
    "vllm": "mmjobs.rollout.external.vllm_server",
    "click": "mmlaunch.cli",
    "rich": "mmlaunch.cli",
}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for root in ROOTS.values():
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, wherever in it; `from a import b` counts as a.b when that is a module."""
    known, names = modules(), []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if name in known else node.module for name in full]
    return tuple(names)


def is_in(module: str, packages: str | tuple[str, ...]) -> bool:
    names = (packages,) if isinstance(packages, str) else packages
    return any(module == name or module.startswith(f"{name}.") for name in names)


def room_of(module: str) -> tuple[str, str]:
    """The package and the room of a module: `mmjobs.train.trainer` stands in (`mmjobs`, `train`)."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


@pytest.mark.parametrize("package", LAYERS)
def test_rooms_import_downwards_only(package: str) -> None:
    level = {room: number for number, rooms in enumerate(LAYERS[package]) for room in rooms}
    known = modules()
    faults = []
    for module, path in known.items():
        own = room_of(module)
        if own[0] != package or not own[1]:
            continue
        assert own[1] in level, f"{module} stands in no room of the house"
        for target in imports(path):
            other = room_of(target)
            if target in known and other[0] == package and other[1] and other[1] != own[1]:
                faults += [f"{module} imports {target}"] if level[other[1]] <= level[own[1]] else []
    assert not faults


def test_the_launcher_is_free_of_torch_and_of_the_jobs() -> None:
    faults = [
        f"{module} imports {target}"
        for module, path in modules().items()
        if is_in(module, "mmlaunch")
        for target in imports(path)
        if target.partition(".")[0] in HEAVY and (module, target.partition(".")[0]) not in MAY_IMPORT
    ]
    assert not faults


def test_jobs_know_the_contract_only() -> None:
    faults = [
        f"{module} imports {target}"
        for module, path in modules().items()
        if is_in(module, "mmjobs")
        for target in imports(path)
        if is_in(target, "mmlaunch") and not is_in(target, CONTRACT)
    ]
    assert not faults


def test_the_contract_rests_on_nothing_above_it() -> None:
    faults = [
        f"{module} imports {target}"
        for module, path in modules().items()
        if is_in(module, CONTRACT)
        for target in imports(path)
        if is_in(target, ("mmlaunch", "mmjobs")) and not is_in(target, CONTRACT)
    ]
    assert not faults


@pytest.mark.parametrize("library", ONLY_IN)
def test_one_room_for_each_library(library: str) -> None:
    users = [module for module, path in modules().items() if any(is_in(target, library) for target in imports(path))]
    assert [user for user in users if not is_in(user, ONLY_IN[library])] == []


def test_no_cycles() -> None:
    known = modules()
    graph = {module: {target for target in imports(path) if target in known} for module, path in known.items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for target in graph[module] - {module}:
                visit(target, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


SCHEDULERS = {path.parent.name for path in (ROOT / "launcher" / "mmlaunch" / "schedulers").glob("*/scheduler.py")}
WORDS_OF_SLURM = re.compile(r"sbatch|squeue|sacct|scancel|scontrol|sinfo|SLURM_")
MAY_NAME_SLURM = {
    "mmlaunch.recipe.environment": "variables that no recipe may set, whatever runs it",
    "mmlaunch.recipe.scalars": "words that may stand on an #SBATCH line",
    "mmlaunch.load.cluster": "keys of a profile: `sbatch` are options that are passed on as they are",
    "mmlaunch.submit.render": "the filter `sbatch` for templates",
}


def strings(path: Path) -> Iterator[str]:
    """The texts that a module works with; docstrings are not among them."""
    tree = ast.parse(path.read_text())
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def test_only_schedulers_know_a_scheduler() -> None:
    """Nobody else imports one, names its programs or variables, or compares anything with the name of one."""
    assert sorted(SCHEDULERS) == ["local", "slurm"]
    rooms = tuple(f"mmlaunch.schedulers.{name}" for name in SCHEDULERS)
    entry_point = "mmlaunch.submit.ranks"  # the name by which job scripts of old runs call the local scheduler
    faults = []
    for module, path in modules().items():
        if not is_in(module, "mmlaunch") or is_in(module, "mmlaunch.schedulers"):
            continue
        faults += [f"{module} imports {t}" for t in imports(path) if is_in(t, rooms) and module != entry_point]
        if module not in MAY_NAME_SLURM:
            faults += [f"{module} says {text!r}" for text in strings(path) if WORDS_OF_SLURM.search(text)]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                faults += [
                    f"{module}:{node.lineno} compares with {side.value!r}"
                    for side in sides
                    if isinstance(side, ast.Constant) and side.value in SCHEDULERS
                ]
    assert not faults
    base = ROOT / "launcher" / "mmlaunch" / "schedulers" / "base.py"
    assert not [target for target in imports(base) if is_in(target, rooms)]


NAMES_IN_A_RUN = re.compile(
    r"recipe\.resolved|events\.jsonl|environment\.json|srun\.out|batch\.out|MANIFEST\.json|tfevents|^\.?(rank|step)-$"
)


def test_only_run_paths_knows_the_names_inside_a_run() -> None:
    """Nobody else joins a path inside a run directory: a file has its name, and its place, once."""
    assert any(NAMES_IN_A_RUN.search(text) for text in strings(modules()["mmlaunch.run.paths"]))
    faults = [
        f"{module} says {text!r}"
        for module, path in modules().items()
        if not is_in(module, ("mmlaunch.run.paths", "mmlaunch.run.manifest"))
        for text in strings(path)
        if NAMES_IN_A_RUN.search(text)
    ]
    assert not faults


def test_no_rooms_without_a_purpose() -> None:
    assert [m for m in modules() if m.rpartition(".")[2] in ("utils", "helpers", "common", "misc")] == []
    for module, path in modules().items():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{module} does not say what it owns"


def test_every_package_is_listed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    standing = {m for m, path in modules().items() if path.name == "__init__.py"} | {
        "mmlaunch.templates",
        "mmlaunch.recipes",
    }
    assert listed == standing


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and a source archive, built from a copy, so that nothing of an earlier build slips in."""
    target, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source")
    for name in ("launcher", "jobs", "templates", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def test_the_wheel_holds_the_two_packages_and_all_of_them(distributions: Path) -> None:
    names = zipfile.ZipFile(next(distributions.glob("*.whl"))).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"mmlaunch", "mmjobs"}
    expected = {
        path.relative_to(root).as_posix()
        for root in ROOTS.values()
        for path in root.rglob("*")
        if path.suffix in (".py", ".typed", ".jinja")
    }
    for folder, suffixes in (("templates", (".j2", ".yaml", ".py")), ("recipes", (".yaml", ".py"))):
        expected |= {
            f"mmlaunch/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / folder).rglob("*") if p.suffix in suffixes
        }
    assert {name for name in names if ".dist-info" not in name} == expected


def test_the_source_archive_builds_too(distributions: Path) -> None:
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = archive.getnames()
    assert any(name.endswith("launcher/mmlaunch/cli/__init__.py") for name in names)
    assert any(name.endswith("templates/sbatch.sh.j2") for name in names)


def test_the_command_line_is_light() -> None:
    code = (
        "import sys, mmlaunch.cli, mmlaunch.cli.submit, mmlaunch.cli.render, mmlaunch.cli.status, mmlaunch.attempt\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in "
        f"{sorted(HEAVY | {'submitit', 'cloudpickle', 'rich'})}))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_help_imports_no_schema() -> None:
    code = "import sys; from mmlaunch.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print('pydantic' in sys.modules, 'yaml' in sys.modules, 'jinja2' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "False False False"


def test_a_single_recipe_imports_nothing_of_pipelines() -> None:
    code = "import sys; from mmlaunch.cli import main\ntry: main(['render', sys.argv[1], '--cluster', 'local'])\n"
    code += "except SystemExit as end: assert not end.code\n"
    code += "print([m for m in ('mmlaunch.submit.pipeline', 'mmlaunch.monitor.status') if m in sys.modules])"
    command = [sys.executable, "-c", code, str(ROOT / "recipes" / "quickstart.yaml")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1] == "[]"
