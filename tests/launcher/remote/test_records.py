"""Which machine a name means, which files travel, and profiles of other machines."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from tests.runs import mmlaunch

from mmlaunch.errors import RecipeError, RunNotFound, UserError
from mmlaunch.load import load_recipe
from mmlaunch.load.cluster import choose
from mmlaunch.remote import records
from mmlaunch.remote.files import files_of
from mmlaunch.remote.forward import forward, remote_runs
from mmlaunch.remote.host import Host

HERE, THERE = "dpo-1129-000a", "dpo-1129-000b"
HOST, OTHER = Host("there", "~/mmlaunch/vqa", "mmlaunch"), Host("else", "~/mmlaunch/vqa", "mmlaunch")


def run_here(own_home: Path, name: str) -> None:
    folder = own_home / "runs" / name
    folder.mkdir(parents=True)
    (folder / "recipe.resolved.yaml").write_text("")


def test_a_name_means_a_run_here_or_there(own_home: Path) -> None:
    assert records.find("last") is None and records.records() == []
    run_here(own_home, HERE)
    assert records.find("last") is None
    time.sleep(0.02)
    records.write(THERE, HOST, ["LAB_TOKEN"])
    records.write("ppo-1129-0001", OTHER, [])
    (own_home / "runs" / ".remote" / "odd.json").write_text('{"run": 3}')
    names = {name: (there[1] if (there := records.find(name)) else None) for name in (
        "last", "last/sft", THERE, f"{THERE}/2", "000b", "ppo", HERE, "000a", "nothing", "",
    )}  # fmt: skip
    assert names == {
        "last": "ppo-1129-0001", "last/sft": "ppo-1129-0001/sft", THERE: THERE, f"{THERE}/2": f"{THERE}/2",
        "000b": THERE, "ppo": "ppo-1129-0001", HERE: None, "000a": None, "nothing": None, "": None,
    }  # fmt: skip
    with pytest.raises(RunNotFound, match=f"'dpo' fits 2 runs; write more of the name: {HERE}, {THERE} on there"):
        records.find("dpo")
    completed = mmlaunch(COMP_WORDS="mmlaunch logs ppo", COMP_CWORD="2", _MMLAUNCH_COMPLETE="bash_complete")
    assert completed.stdout == "plain,ppo-1129-0001\n"
    assert [(one.run, one.host, one.passed) for one in records.records()][1] == (THERE, HOST, ("LAB_TOKEN",))


def test_runs_of_one_place_at_a_time(own_home: Path) -> None:
    run_here(own_home, HERE)
    records.write(THERE, HOST, [])
    records.write("ppo-1129-0001", OTHER, [])
    with pytest.raises(UserError, match="runs of this machine, there:~/mmlaunch/vqa; name those of one place"):
        remote_runs([HERE, THERE])
    with pytest.raises(UserError, match="runs of there:~/mmlaunch/vqa, else:"):
        remote_runs([THERE, "ppo"])
    chosen = remote_runs([THERE])
    assert chosen is not None
    with pytest.raises(UserError, match=r"works there alone; type: ssh -t there 'cd .* board dpo-1129-000b'"):
        forward("board", *chosen, [])


def test_the_files_of_a_recipe(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    texts = {
        "recipes/one.yaml": "extends: [../base.yaml, base/llama3_clip.yaml]\nsteps: 3\n",
        "recipes/both.yaml": "name: both\nstages:\n  a: one.yaml\n  b: {extends: ../../other.yaml}\n",
        "recipes/sbatch.sh.j2": "", "recipes/templates/own.j2": "", "recipes/notes.txt": "", "recipes/two.yaml": "",
        "base.yaml": "extends: ../small.yaml\ndata: {train: {path: x, format: 'own.py:rows'}}\n"
        "objective: lab.losses:Focal\nlog: {trackers: 'elsewhere.watch:Tracker'}\n",
        "recipes/lab/losses.py": "class Focal: ...\n", "recipes/lab/words.json": "{}", "lab/losses.py": "",
        "own.py": "def rows(source): ...\n", "../other.yaml": small.read_text(),
    }  # fmt: skip
    for name, text in texts.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    monkeypatch.chdir(project)
    recipe = Path("recipes/one.yaml")
    sent = files_of(recipe, [load_recipe("base.yaml")], Path.cwd())
    assert {place: path.resolve() for place, path in sent.items()} == {
        "project/recipes/one.yaml": project / "recipes/one.yaml", "project/base.yaml": project / "base.yaml",
        "small.yaml": small, "project/recipes/sbatch.sh.j2": project / "recipes/sbatch.sh.j2",
        "project/recipes/templates/own.j2": project / "recipes/templates/own.j2",
        "project/recipes/own.py": project / "own.py",
        **{f"project/recipes/lab/{name}": project / "recipes" / "lab" / name for name in ("losses.py", "words.json")},
    }  # fmt: skip
    assert next(iter(sent)) == "project/recipes/one.yaml", "the recipe is the first"
    both = files_of(Path("recipes/both.yaml"), [], Path.cwd())
    assert {"project/recipes/both.yaml", "project/recipes/one.yaml", "other.yaml", "small.yaml"} <= set(both)
    recipe.write_text(f"extends: {small}\n")
    with pytest.raises(UserError, match=re.escape(f"{small} is an absolute path, which leads nowhere on another")):
        files_of(recipe, [], Path.cwd())


def profile(folder: Path, **fields: str) -> Path:
    path = folder / "far.yaml"
    path.write_text(json.dumps(fields))
    return path


def test_a_profile_of_another_machine(tmp_path: Path, small: Path) -> None:
    name, cluster = choose(str(profile(tmp_path, host="me@login.cluster.org", host_folder="~/x")))
    assert (name, cluster.host, cluster.host_program) == ("far", "me@login.cluster.org", "mmlaunch")
    for host in ("-oProxyCommand=x", "me@host:22", "ssh://host", "a b", ""):
        with pytest.raises(RecipeError, match="is no destination of ssh; write me@login"):
            choose(str(profile(tmp_path, host=host)))
    with pytest.raises(RecipeError, match="host_folder: this profile has no host"):
        choose(str(profile(tmp_path, host_folder="~/x")))
    path = profile(tmp_path, host="there")
    for command in (("render", small), ("submit", small, "--toy")):
        refused = mmlaunch(*command, "--cluster", path)
        assert refused.returncode == 2 and "profile far is of another machine (there)" in refused.stderr, refused
    assert mmlaunch("validate", small, "--cluster", path).returncode == 0
