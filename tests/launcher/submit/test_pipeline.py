"""Pipelines on this machine, with a job that trains nothing: their order, what they use again, what fails in them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import SMALL, SubmitStub
from tests.runs import ended, mmlaunch, until, wait_for
from tests.stub_job import Fault

from mmlaunch.monitor import pipeline as monitor
from mmlaunch.recipe import resolved
from mmlaunch.recipe.environment import hide_secrets
from mmlaunch.run import ledger, manifest, pipeline
from mmlaunch.run.paths import RunPaths
from mmlaunch.submit import stages

DIAMOND = """\
name: rlhf
shared: {steps: 4, resources: {tasks_per_node: 1}}
stages:
  ppo:
    extends: small.yaml
    needs: dpo
    model: {init_from: stage:sft}
    objective: {method: ppo, rewards: stage:reward, sampling: {max_new_tokens: 8}}
  sft: small.yaml
  reward: {extends: small.yaml, model: {init_from: stage:sft}, objective: reward}
  dpo: {extends: small.yaml, model: {init_from: stage:sft}, objective: dpo}
"""

pytestmark = pytest.mark.usefixtures("stop_all")


@pytest.fixture
def diamond(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SMALL)
    path = tmp_path / "rlhf.yaml"
    path.write_text(DIAMOND)
    return path


def run_of(whole: RunPaths, name: str) -> RunPaths:
    stage = pipeline.read(whole).named(name)
    assert stage is not None
    return stage.paths


def time_of(run: RunPaths, kind: str) -> float:
    return float(next(event["time"] for event in ledger.read(run.events) if event["event"] == kind))


def state_of(whole: RunPaths) -> str:
    return monitor.of(whole).whole.state


def over(whole: RunPaths) -> bool:
    return state_of(whole) in ("done", "failed", "cancelled")


def test_each_stage_begins_once_those_that_it_needs_are_done(diamond: Path, submit_stub: SubmitStub) -> None:
    whole = submit_stub(diamond, cluster="local")
    until(lambda: over(whole))
    assert state_of(whole) == "done"
    for name, needs in {"reward": ["sft"], "dpo": ["sft"], "ppo": ["sft", "reward", "dpo"]}.items():
        run = run_of(whole, name)
        kinds = [event["event"] for event in ledger.read(run.events)]
        assert kinds.count("started") == kinds.count("ended") == kinds.count("released") == 1
        assert time_of(run, "started") >= max(time_of(run_of(whole, need), "ended") for need in needs)
    sft, ppo = run_of(whole, "sft"), resolved.read(run_of(whole, "ppo").resolved)
    newest, _ = manifest.newest(sft.checkpoints)
    assert newest is not None and ppo.model.init_from == str(sft.checkpoint(newest.step))
    shown = mmlaunch("status", whole.name).stdout
    assert "rlhf-" in shown and "├─ reward" in shown and "└─ ppo" in shown and "4 done" in shown
    assert mmlaunch("report", whole.name, "--html").returncode == 0
    written = (whole.root / "report.html").read_text()
    assert written.count("<section>") == 4 and written.count('class="bars"') + written.count("class=bars") == 4

    again = mmlaunch("submit", "--cluster", "local", diamond)
    assert again.returncode == 0 and "all of it has finished runs of the same content" in again.stdout
    part = json.loads(
        mmlaunch("submit", "--json", "--cluster", "local", diamond, "-s", "stages.dpo.optim.lr=1e-2").stdout
    )
    assert [one["stage"] for one in part["stages"] if not one["reused"]] == ["dpo", "ppo"]
    mmlaunch("cancel", "--now", part["run"])
    listed = json.loads(mmlaunch("status", "--json").stdout)
    assert {one["run"] for one in listed} == {whole.name, part["run"]} and len(listed[0]["stages"]) == 4


def test_a_stage_that_fails_holds_up_those_that_need_it(diamond: Path, submit_stub: SubmitStub) -> None:
    whole = submit_stub(diamond, cluster="local", fault=Fault.OUT_OF_MEMORY)
    until(lambda: over(whole))
    view = monitor.of(whole)
    assert view.in_state("failed") == ["sft"] and view.in_state("blocked") == ["reward", "dpo", "ppo"]
    why = mmlaunch("why", whole.name).stdout
    assert "Stage sft: Out of memory" in why and f"mmlaunch resume {whole.name}" in why
    assert all(ledger.read(run_of(whole, name).events).last("started") is None for name in ("reward", "dpo", "ppo"))
    alone = mmlaunch("submit", "--cluster", "local", diamond, "--only", "ppo")
    assert alone.returncode == 2 and "has no finished run of the same content" in alone.stderr

    resumed = mmlaunch("resume", whole.name, STUB_FAULT="")
    assert resumed.returncode == 0 and "goes on with sft" in resumed.stdout
    until(lambda: over(whole))
    assert state_of(whole) == "done"


@pytest.mark.nightly  # a quarter of a minute
def test_from_goes_on_behind_stages_that_are_done(diamond: Path, submit_stub: SubmitStub) -> None:
    too_early = mmlaunch("submit", "--cluster", "local", diamond, "--from", "dpo")
    assert too_early.returncode == 2 and "sft has no finished run of the same content" in too_early.stderr
    begun = submit_stub(diamond, "--until", "reward", cluster="local")
    until(lambda: over(begun))
    rest = submit_stub(diamond, "--from", "dpo", cluster="local")
    until(lambda: over(rest))
    assert state_of(rest) == "done"
    before, after = ({s.name: s.run for s in pipeline.read(whole).stages} for whole in (begun, rest))
    assert set(before) == {"sft", "reward"} and {name: after[name] for name in before} == before
    assert all(ledger.read(run_of(rest, name).events).last("ended") is not None for name in ("dpo", "ppo"))


@pytest.mark.nightly  # a quarter of a minute
def test_nothing_is_released_twice_and_a_missed_release_is_seen(diamond: Path, submit_stub: SubmitStub) -> None:
    submitted = submit_stub(diamond, "-s", "stages.ppo.steps=5", cluster="local")
    reward = run_of(submitted, "reward")
    wait_for(reward, ended)
    assert stages.release(submitted) == []
    until(lambda: over(submitted))
    text = run_of(submitted, "ppo").events.read_text().splitlines()
    run_of(submitted, "ppo").events.write_text(text[0] + "\n")  # as if whoever released it had been killed before
    view = monitor.of(submitted)
    assert monitor.missed(view) == ["ppo"] and view.whole.state == "held"
    assert f"mmlaunch resume {submitted.name}" in mmlaunch("status", submitted.name).stdout
    assert mmlaunch("resume", submitted.name).returncode == 0
    until(lambda: over(submitted))
    assert state_of(submitted) == "done"


def test_a_child_does_not_begin_behind_a_parent_that_is_not_as_it_was(diamond: Path, submit_stub: SubmitStub) -> None:
    whole = submit_stub(diamond, "--until", "reward", cluster="local")
    until(lambda: over(whole))
    sft, reward = run_of(whole, "sft"), run_of(whole, "reward")
    sft.resolved.chmod(0o644)
    (checkpoint,) = (path for path in sft.checkpoints.glob("step-4/MANIFEST.json"))
    for path in sft.checkpoints.glob("step-[!4]*"):
        path.rename(sft.root / path.name)
    recipe, marker, events = sft.resolved.read_text(), checkpoint.read_text(), sft.events.read_text()
    submitted = reward.events.read_text().splitlines()[0] + "\n"

    def refused() -> str:
        """What the stage says that begins again, as if it never had before."""
        reward.events.write_text(submitted)
        script = ["bash", str(reward.attempt(1).script), "1"]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        last = ledger.read(reward.events).events[-1]
        assert done.returncode == 93 and (last["event"], last["state"]) == ("ended", "failed"), done.stderr
        return done.stderr

    sft.resolved.write_text(recipe.replace("seed: 0", "seed: 1"))
    assert "stage sft, which this one needs, was changed since" in refused()
    assert "stage sft, which this one needs, was changed since" in mmlaunch("why", reward.name).stdout
    sft.resolved.write_text(recipe)
    checkpoint.write_text("{}")
    assert "stage sft has no valid checkpoint" in refused()
    checkpoint.write_text(marker)
    ledger.append(sft.events, "submitted", executor="local")
    assert "stage sft, which this one needs, is not done" in refused()
    sft.events.write_text(events)
    sft.root.rename(sft.root.with_name(".away"))
    assert "stage sft, which this one needs, is gone" in refused()


def test_cancel_takes_down_the_graph(diamond: Path, submit_stub: SubmitStub) -> None:
    whole = submit_stub(diamond, "-s", "shared.steps=100000", cluster="local")
    wait_for(run_of(whole, "sft"), lambda events: any(e["event"] == "step" for e in events))
    done = mmlaunch("cancel", whole.name)
    assert done.returncode == 0 and "cancelled 4 of 4 stages" in done.stdout
    assert state_of(whole) == "cancelled"
    assert all(ledger.read(run_of(whole, n).events).last("started") is None for n in ("reward", "dpo", "ppo"))


BAD = {
    "a circle": ("sft: {extends: small.yaml, model: {init_from: stage:ppo}}", "need each other in a circle"),
    "an unknown stage": ("sft: {extends: small.yaml, needs: [reward, dpu]}", "no stage 'dpu'; did you mean dpo?"),
    "no model": (
        "sft: small.yaml\n  s: {objective: {method: score, rewards: [{function: exact}]}, precision: fp32,"
        " resources: {gpus_per_node: 0}, data: {input: {path: small.yaml, format: predictions}}}\n"
        "  t: {extends: small.yaml, model: {init_from: stage:s}}",
        "s trains nothing (score)",
    ),
    "no rows": (
        "sft: small.yaml\n  t: {extends: small.yaml, data: {train: stage:dpo}}",
        "dpo trains a model (dpo) and makes no rows",
    ),
    "no scores": (
        "sft: small.yaml\n  t: {extends: small.yaml, model: {init_from: stage:sft},"
        " objective: {method: ppo, rewards: stage:dpo, sampling: {max_new_tokens: 8}}}",
        "stage dpo is a run of dpo, its model gives no scores",
    ),
    "no such field": (
        "sft: small.yaml\n  t: {extends: small.yaml, resources: {partition: stage:dpo}}",
        "this field takes no stage",
    ),
    "twice": ("sft: small.yaml\n  sft: small.yaml", "twice"),
    "two mistakes": (
        "sft: {extends: small.yaml, optim: {lrr: 1}}\n  t: {extends: small.yaml, seeds: 1}",
        "did you mean optim.lr?",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_have_a_line_and_nothing_is_submitted(name: str, diamond: Path, own_home: Path) -> None:
    written, sentence = BAD[name]
    diamond.write_text(DIAMOND.replace("sft: small.yaml", written))
    done = mmlaunch("submit", "--cluster", "local", diamond)
    assert done.returncode == 2 and sentence in done.stderr and f"{diamond}:" in done.stderr
    assert name != "two mistakes" or "stages.t.seeds: unknown key" in done.stderr
    assert not (own_home / "runs").exists()


def test_half_a_graph_never_runs(
    diamond: Path, submit_stub: SubmitStub, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last stage names a variable that is not set: it is only seen when everything is about to be made."""
    done = mmlaunch("submit", "--cluster", "local", diamond, "-s", "stages.ppo.env=[NOT_SET_ANYWHERE]")
    assert done.returncode == 2 and "NOT_SET_ANYWHERE" in done.stderr
    assert not list((own_home / "runs").glob("*"))


def test_a_recipe_alone_has_no_stages(write: Callable[..., Path]) -> None:
    path = write(SMALL.replace("model:", "model:\n  init_from: stage:sft"))
    done = mmlaunch("submit", "--cluster", "local", path)
    assert done.returncode == 2 and "names a stage, and this recipe is not one of a pipeline" in done.stderr
    submit_only = mmlaunch("submit", "--cluster", "local", path, "--only", "sft")
    assert submit_only.returncode == 2 and "choose stages of a pipeline" in submit_only.stderr


def test_what_all_stages_share_is_told_once_and_mended_for_all(diamond: Path) -> None:
    diamond.write_text(DIAMOND.replace("shared: {", "shared: {batch: {global: 9}, "))
    done = mmlaunch("validate", diamond, "-s", "shared.resources.tasks_per_node=2")
    assert done.returncode == 2 and done.stderr.count("do not divide") == 1
    right: list[str | Path] = ["--cluster", "local", diamond, "-s", "shared.batch.global=12"]
    done = mmlaunch("submit", *right, "-s", "shared.resources.nodes=3")
    assert "-s shared.resources.nodes=1" in done.stderr
    one = mmlaunch("submit", *right, "-s", "stages.dpo.resources.nodes=3")
    assert "-s stages.dpo.resources.nodes=1" in one.stderr
    assert hide_secrets("recipes/rlhf_llama3.yaml") == "recipes/rlhf_llama3.yaml", "no token of Hugging Face"
    assert "this is a pipeline, and one recipe is wanted" in mmlaunch("estimate", diamond).stderr
