"""`mmlaunch init`: the files that it writes pass `validate`, on a site with Slurm and on a machine without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.runs import mmlaunch

from mmlaunch.cli.init import PROFILE, command
from mmlaunch.load import load_recipe
from mmlaunch.schedulers import choose
from mmlaunch.schedulers.base import Partition
from mmlaunch.schedulers.gpu_memory import memory_of
from mmlaunch.schedulers.local import gpus
from mmlaunch.schedulers.slurm.site_partitions import partitions
from mmlaunch.submit.first_files import KINDS, Answers, batch_of, profile_text, recipe_text

SINFO = """\
debug*|4|(null)|16|30:00|up
gpu|12|gpu:h100:8(S:0-1)|96|2-00:00:00|up
gpu|2|gpu:h100:4|64|2-00:00:00|up
old|3|gpu:v100:4,craynetwork:4|40+|infinite|up
closed|9|gpu:h200:8|96|1-00:00:00|down
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose PATH has Slurm's programs, and whose sinfo answers with `SINFO`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "slurm.conf").touch()
    (folder / "answer").write_text(SINFO)
    programs = {"sbatch": "echo slurm 24.05.1", "sinfo": f'cat "{folder}/answer"', "scontrol": "true", "sacct": "true"}
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    return folder


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Slurm and without GPUs."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setattr("mmlaunch.schedulers.local.scheduler._gpus", list)


def init(*arguments: str | Path, answers: str | None = None) -> Result:
    return CliRunner().invoke(command, [str(one) for one in arguments], input=answers, catch_exceptions=False)


def valid(folder: Path) -> str:
    """What `mmlaunch validate` says of both files."""
    recipe = next(path for path in folder.glob("*.yaml") if path.name != PROFILE)
    for arguments in ((recipe, folder / PROFILE), (recipe, "--cluster", folder / PROFILE)):
        done = mmlaunch("validate", *arguments)
        assert done.returncode == 0, done.stderr
    return mmlaunch("validate", recipe, folder / PROFILE).stdout


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_defaults_of_a_site_with_slurm(method: str, train: str, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    done = init(folder, "--yes", "--method", method, "--train", train)
    assert done.exit_code == 0, done.output
    assert "cluster profile cluster: slurm, partition gpu" in valid(folder)
    recipe = load_recipe(folder / f"{method}-llava-1.5-7b-hf.yaml").recipe
    assert (recipe.objective.method, recipe.resources.gpus_per_node) == (method, 8)
    assert recipe.model.train.language == train and recipe.batch.examples == 128
    _, cluster = choose.profile(str(folder / PROFILE))
    assert (cluster.partition, cluster.gpus_in_node, cluster.gpu_memory) == ("gpu", 8, "80G")
    assert (cluster.cpus_per_rank, cluster.max_time) == (12, 2 * 86400)
    last = done.output.rstrip().splitlines()[-1]
    assert last == f"next: mmlaunch submit {folder}/{method}-llava-1.5-7b-hf.yaml --cluster {folder / PROFILE}"


@pytest.mark.usefixtures("site")
def test_the_questions(tmp_path: Path) -> None:
    answers = [
        "slurm",
        "old",
        "p123",
        "2",
        "4",
        "",
        "dpo",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "",
        "data/p.jsonl",
        "",
        "12h",
    ]
    done = init(tmp_path / "new", answers="\n".join(answers) + "\n")
    assert done.exit_code == 0, done.output
    assert "gpu: 12 nodes with 8 h100, at most 48h" in done.output and "debug: 4 nodes without GPUs" in done.output
    assert "closed" not in done.output
    valid(tmp_path / "new")
    recipe = load_recipe(tmp_path / "new" / "dpo-qwen2.5-vl-7b-instruct.yaml").recipe
    assert (recipe.resources.nodes, recipe.resources.gpus_per_node, recipe.resources.time) == (2, 4, 12 * 3600)
    assert recipe.data.train[0].path == "data/p.jsonl" and recipe.model.lora is not None
    _, cluster = choose.profile(str(tmp_path / "new" / PROFILE))
    assert (cluster.partition, cluster.account, cluster.gpu_memory) == ("old", "p123", "32G")


@pytest.mark.usefixtures("alone")
def test_a_machine_without_slurm_and_gpus(tmp_path: Path) -> None:
    done = init(tmp_path / "new", "--yes")
    assert done.exit_code == 0, done.output
    valid(tmp_path / "new")
    assert load_recipe(tmp_path / "new" / "sft-smolvlm-256m-instruct.yaml").recipe.resources.world == 1
    assert choose.profile(str(tmp_path / "new" / PROFILE))[1].executor == "local"


@pytest.mark.usefixtures("alone")
def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / PROFILE).write_text("executor: local\n")
    done = mmlaunch("init", tmp_path, "--yes")
    assert done.returncode == 2 and f"{tmp_path / PROFILE}: exists already" in done.stderr
    assert (tmp_path / PROFILE).read_text() == "executor: local\n"
    assert not list(tmp_path.glob("sft*"))


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--partition", "closed"], "there is no 'closed' here; write one of debug, gpu, old"),
        (["--time", "soon"], "--time: 'soon' is not a duration; write 30m"),
        (["--time", "72h"], "resources.time: 72 hours are more than this cluster's longest limit (48)"),
        (["--name", "a b"], "name: 'a b' cannot be the name of a run"),
        (["--gpu-memory", "much"], "gpu_memory: 'much' is not a memory size"),
    ],
)
def test_mistakes_leave_no_file(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = mmlaunch("init", tmp_path / "new", "--yes", *arguments)
    assert done.returncode == 2 and says in done.stderr
    assert not list((tmp_path / "new").glob("*"))


@pytest.mark.parametrize("method", KINDS)
def test_the_rehearsal_that_it_names_can_be_typed(method: str, tmp_path: Path) -> None:
    done = init(tmp_path / "new", "--yes", "--method", method, "--model", "llava-hf/llava-1.5-7b-hf")
    line = next(line for line in done.output.splitlines() if "rehearse" in line)
    words = line.partition("mmlaunch ")[2].replace("--follow", "--dry-run").split()
    toy = mmlaunch(*words)
    assert words[0] == "submit" and toy.returncode == 0, toy.stderr


def test_data_that_are_there_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    assert init(tmp_path / "new", "--yes", "--name", "a", "--data", tmp_path / "rows.jsonl").exit_code == 0
    assert load_recipe(tmp_path / "new" / "a.yaml").recipe.data.train[0].format == "auto"


def test_partitions_of_sinfo(site: Path) -> None:
    by_name = {one.name: one for one in partitions()}
    assert list(by_name) == ["debug", "gpu", "old"]
    assert by_name["debug"] == Partition("debug", True, 4, 0, "", "", 16, 1800)
    assert by_name["gpu"] == Partition("gpu", False, 12, 8, "h100", "80G", 96, 172800)
    assert by_name["old"] == Partition("old", False, 3, 4, "v100", "32G", 40, None)
    (site / "sinfo").write_text("#!/bin/bash\nexit 1\n")
    assert partitions() == []


@pytest.mark.usefixtures("site")
def test_a_slurm_that_does_not_answer(site: Path, tmp_path: Path) -> None:
    (site / "sinfo").write_text("#!/bin/bash\nexit 1\n")
    done = init(tmp_path / "new", "--yes", "--partition", "gpu", "--gpus", "4")
    assert done.exit_code == 0, done.output
    valid(tmp_path / "new")
    assert choose.profile(str(tmp_path / "new" / PROFILE))[1].partition == "gpu"


@pytest.mark.parametrize(
    ("kind", "memory"),
    [("h200", "141G"), ("nvidia_h100_80gb_hbm3", "80G"), ("NVIDIA A100-SXM4-40GB", "40G"), ("a100", ""),
     ("l40s", "48G"), ("L40", "48G"), ("tesla_v100", "32G"), ("gh200", "96G"), ("", ""), ("rtx", "")],
)  # fmt: skip
def test_the_memory_of_a_gpu(kind: str, memory: str) -> None:
    assert memory_of(kind) == memory


@pytest.mark.parametrize(
    ("answer", "says"),
    [("NVIDIA H200, 143771\n", ("NVIDIA H200", "141G")),
     ("NVIDIA A10, 23028\nNVIDIA A10, 23028\n", ("NVIDIA A10", "24G")),
     ("No devices were found\n", ("", "")), ("Something, 11264\n", ("Something", "11G"))],
)  # fmt: skip
def test_the_gpus_of_this_machine(
    answer: str, says: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/bash\nprintf '{answer}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpus.kind() == says


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize(("nodes", "gpus"), [(1, 0), (1, 3), (3, 8), (64, 8)])
def test_batches_divide_over_all_machines(method: str, nodes: int, gpus: int, tmp_path: Path) -> None:
    answers = Answers("a", method, "m/n", "full", "it's: #1, {a}.json", nodes, gpus, 3600, "slurm", "p", "p1")
    (tmp_path / "a.yaml").write_text(recipe_text(answers))
    recipe = load_recipe(tmp_path / "a.yaml").recipe
    assert (recipe.batch.examples, recipe.data.train[0].path) == (batch_of(answers), answers.data)
    (tmp_path / PROFILE).write_text(profile_text(answers, Partition("p", gpus=gpus)))
    assert max(map(len, recipe_text(answers).splitlines())) <= 120
    if gpus:
        choose.profile(str(tmp_path / PROFILE))


@pytest.mark.usefixtures("alone")
def test_a_wrong_profile_is_refused_by_validate(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("executor: slurm\npartitoin: gpu\n")
    done = mmlaunch("validate", tmp_path / "p.yaml")
    assert done.returncode == 2 and "did you mean partition?" in done.stderr
