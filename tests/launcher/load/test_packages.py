"""Packages that recipes name by a module: which one is meant, and what of it a run keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmlaunch.errors import Problem, UserError
from mmlaunch.load import load_recipe, packages, plugins
from mmlaunch.load.packages import NoModule, TooLarge
from mmlaunch.load.plugins import Folders
from mmlaunch.recipe import Recipe
from mmlaunch.run.paths import RunPaths
from mmlaunch.submit.create_run import create
from mmlaunch.submit.prepare import prepare

Write = Callable[..., Path]
SPOILT = "raise SystemExit('a launcher must not run this')\n"
LOSSES = SPOILT + "class Focal:\n    units = __call__ = None\n"
RECIPE = """\
name: own
model: {language: {random: {width: 16}}}
data: {train: d.json}
objective: OBJECTIVE
optim: {lr: 1e-5}
batch: {global: 8}
steps: 1
precision: fp32
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 1}
"""


@pytest.fixture
def recipe(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe beside a package, and a working folder elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    write("", "recipes/own_lab/__init__.py")
    write(LOSSES, "recipes/own_lab/losses.py")
    return write(RECIPE.replace("OBJECTIVE", "own_lab.losses:Focal"), "recipes/own.yaml")


def loaded(recipe: Path) -> tuple[Recipe, Folders]:
    return load_recipe(recipe).recipe, Folders(recipe.parent, Path.cwd(), RunPaths(recipe.parent / "run"))


def kept(recipe: Path) -> dict[str, bytes]:
    return plugins.files(*loaded(recipe))


def problems(recipe: Path) -> list[Problem]:
    return plugins.problems(*loaded(recipe))


def test_a_whole_package_beside_the_recipe_is_kept(recipe: Path, write: Write) -> None:
    lab = recipe.parent / "own_lab"
    for name in ("inner/deep.py", "inner/words.json", ".git/config", "__pycache__/losses.pyc", "old.pyc", ".hidden"):
        write(name, f"recipes/own_lab/{name}")
    (lab / "gone").symlink_to(lab / "nowhere")
    (lab / "circle").symlink_to(lab)
    assert problems(recipe) == []
    assert kept(recipe) == {
        "own_lab/__init__.py": b"", "own_lab/losses.py": LOSSES.encode(), "own_lab/inner/deep.py": b"inner/deep.py",
        "own_lab/inner/words.json": b"inner/words.json",
    }  # fmt: skip
    assert plugins.origins(*loaded(recipe)) == {"own_lab": {"copied from": str(lab)}}


def test_what_is_beside_the_recipe_goes_first_and_the_working_folder_last(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, path, working = recipe.parent, tmp_path / "path", Path.cwd()
    for folder in (path, working):
        (folder / "own_lab").mkdir(parents=True)
        (folder / "own_lab" / "losses.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(str(path))
    for place in (beside, path, working):
        found = packages.find("own_lab.losses", beside, working)
        assert found.path == place / "own_lab" and found.source == place / "own_lab" / "losses.py" and found.copied
        (place / "own_lab" / "losses.py").unlink()
    with pytest.raises(NoModule, match=r"^own_lab\.losses$"):
        packages.find("own_lab.losses", beside, working)
    with pytest.raises(NoModule, match=r"^nowhere_x$"):
        packages.find("nowhere_x.losses", beside, working)


def test_a_folder_without_init_is_kept_as_a_package(recipe: Path) -> None:
    """Otherwise a package of the same name on PYTHONPATH would go first."""
    (recipe.parent / "own_lab" / "__init__.py").unlink()
    assert problems(recipe) == []
    assert sorted(kept(recipe)) == ["own_lab/__init__.py", "own_lab/losses.py"]
    assert b"extend_path" in kept(recipe)["own_lab/__init__.py"]


def test_a_single_module_is_kept_alone(recipe: Path) -> None:
    (recipe.parent / "scored").mkdir()  # of data, perhaps
    (recipe.parent / "scored.py").write_text(LOSSES)
    recipe.write_text(RECIPE.replace("OBJECTIVE", "scored:Focal"))
    assert problems(recipe) == [] and kept(recipe) == {"scored.py": LOSSES.encode()}


def test_what_is_installed_is_not_copied_and_its_version_is_known(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "venv" / "lib" / "site-packages"
    (site / "lab_installed").mkdir(parents=True)
    (site / "lab_installed" / "losses.py").write_text(LOSSES)
    about = site / "lab_installed-1.2.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-installed\nVersion: 1.2.3\n")
    (about / "RECORD").write_text("lab_installed/losses.py,,\n")
    monkeypatch.syspath_prepend(str(site))
    recipe.write_text(RECIPE.replace("OBJECTIVE", "lab_installed.losses:Focal"))
    assert problems(recipe) == [] and kept(recipe) == {}
    assert plugins.origins(*loaded(recipe)) == {"lab_installed": {"version": "1.2.3"}}
    (site / "linked").symlink_to(recipe.parent / "own_lab")  # edited where it is developed
    assert packages.find("linked.losses", recipe.parent, Path.cwd()).copied


@pytest.mark.parametrize("module", ["math", "sys", "json.decoder", "mmlaunch.errors", "yaml", "mmjobs.objectives.sft"])
def test_what_every_rank_has_anyway_is_not_copied(recipe: Path, module: str) -> None:
    assert not packages.find(module, recipe.parent, Path.cwd()).copied


def test_an_editable_installation_is_copied(tmp_path: Path) -> None:
    """As setuptools makes it: a finder that maps names to folders, and no entry of `sys.path`."""
    (tmp_path / "src" / "lab_editable").mkdir(parents=True)
    (tmp_path / "src" / "lab_editable" / "losses.py").write_text(LOSSES)
    (tmp_path / "src" / "lab_editable" / "__init__.py").write_text(SPOILT)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "finder.py").write_text(
        "import sys\nfrom importlib.util import spec_from_file_location\n"
        f"SOURCE = {str(tmp_path / 'src' / 'lab_editable')!r}\n"
        "class Finder:\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        if name == 'lab_editable':\n"
        "            init = f'{SOURCE}/__init__.py'\n"
        "            return spec_from_file_location(name, init, submodule_search_locations=[SOURCE])\n"
        "sys.meta_path.append(Finder)\n"
    )
    code = (
        "import finder; from pathlib import Path; from mmlaunch.load.packages import find\n"
        "package = find('lab_editable.losses', Path('x'), Path('y')); print(package.copied, *package.contents())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site-packages")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["True", "lab_editable/__init__.py", "lab_editable/losses.py"], done.stderr


def test_a_package_that_is_too_large_is_refused_at_its_place(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (recipe.parent / "own_lab" / "weights.bin").open("wb") as file:
        file.truncate(packages.LARGEST + 1)
    (problem,) = problems(recipe)
    assert problem.dotted == "objective.method" and "is larger than 16 MiB, with 16.0 MiB in " in problem.what
    assert "own_lab/weights.bin" in problem.what and problem.right.startswith("move what is no code out of it, or")
    with pytest.raises(TooLarge):
        kept(recipe)
    (recipe.parent / "own_lab" / "weights.bin").unlink()
    monkeypatch.setattr(packages, "MOST_FILES", 1)
    assert "has more than 1 files" in problems(recipe)[0].what


def test_a_file_that_cannot_be_read_is_named(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", closed)
    with pytest.raises(UserError, match=r"own_lab/__init__.py cannot be read, and a run keeps a copy: Permission den"):
        kept(recipe)


def test_the_run_keeps_its_package_read_only_and_goes_on_with_it(recipe: Path, write: Write, own_home: Path) -> None:
    write("[]", "elsewhere/d.json")
    prepared = prepare(load_recipe(recipe), "local")
    create(prepared)
    run, folders = prepared.plan.run, prepared.plugin_folders
    copy = run.plugin_files / "own_lab"
    assert copy.stat().st_mode & 0o777 == 0o755 and (copy / "losses.py").stat().st_mode & 0o777 == 0o444
    assert json.loads(run.environment.read_text())["plugins"] == {
        "own_lab": {"copied from": str(recipe.parent / "own_lab")}
    }
    write("def (\n", "recipes/own_lab/losses.py")  # a later edit
    write(LOSSES, "recipes/own_lab/new.py")
    assert plugins.problems(prepared.plan.recipe, folders) == [] and plugins.files(prepared.plan.recipe, folders) == {}
    other = load_recipe(recipe, ["objective=own_lab.new:Focal"]).recipe
    (problem,) = plugins.problems(other, folders)
    assert problem.what == "no module own_lab.new" and "the run has its copy of own_lab" in problem.right


def test_a_secret_in_a_package_is_not_copied(recipe: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("KEY = 'abcdef-123456'\n", "recipes/own_lab/keys.py")
    write("[]", "elsewhere/d.json")
    monkeypatch.setenv("LAB_TOKEN", "abcdef-123456")
    recipe.write_text(recipe.read_text() + "env: [LAB_TOKEN]\n")
    with pytest.raises(UserError, match=r"own_lab/keys.py would hold the value of LAB_TOKEN"):
        create(prepare(load_recipe(recipe), "local"))


def test_a_module_that_a_package_lacks_is_named_with_the_nearest(recipe: Path) -> None:
    other = load_recipe(recipe, ["objective=own_lab.loses:Focal"])
    (problem,) = plugins.problems(other.recipe, Folders(recipe.parent, recipe.parent))
    assert (problem.what, problem.right) == ("no module own_lab.loses", "did you mean own_lab.losses?")
