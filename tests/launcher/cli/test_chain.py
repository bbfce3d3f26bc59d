"""From files to a Hugging Face directory: look at the data, train on them, export, and go on from what was exported."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.runs import ended, losses, mmlaunch, submit, wait_for

from mmjobs.model.toys import models as toys
from mmjobs.model.toys import tokenizers
from mmlaunch.run import ledger
from mmlaunch.run.paths import RunPaths

RECIPE = """
name: chain
model:
  vision: {clip}
  language: {llama}
  chat_template: llama-3
  train: {{vision: frozen, projector: full, language: lora}}
  lora: {{rank: 4, alpha: 8}}
data:
  train: {{path: {rows}, format: llava, images: {images}}}
  on_bad: skip
  workers: 1
objective: sft
optim: {{lr: 1e-2}}
batch: {{global: 4}}
steps: 3
precision: fp32
evaluate: {{samples: 0}}
log: {{every: 1, tensorboard: false}}
resources: {{nodes: 1, gpus_per_node: 0, tasks_per_node: 2, cpus_per_rank: 1}}
"""

STRANGER = """
import sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1]).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1])
talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\\nWhat is it?"}]}]
text = processor.apply_chat_template(talk, add_generation_prompt=True)
inputs = processor(text=[text], images=[Image.open(sys.argv[2])], add_special_tokens=False, return_tensors="pt")
with torch.no_grad():
    print(type(model).__name__, model(**inputs).logits[0, -1, :5].tolist())
    made = model.generate(**inputs, max_new_tokens=5, do_sample=False)
print(len(processor.batch_decode(made)) == 1, "mmjobs" in sys.modules)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints, images and rows, one of them broken."""
    folder = tmp_path_factory.mktemp("world")
    toys.clip(folder / "clip")
    toys.llama(folder / "llama", tokenizers.llama3_tokenizer())
    (folder / "images").mkdir()
    rows = []
    for number in range(12):
        pixels = random.Random(number).randbytes(3 * 40 * 30)
        Image.frombytes("RGB", (40, 30), pixels).save(folder / "images" / f"{number}.jpg")
        talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"It is number {number}."}]
        rows.append({"id": str(number), "image": f"{number}.jpg", "conversations": talk})
    whole = (folder / "images" / "3.jpg").read_bytes()
    (folder / "images" / "3.jpg").write_bytes(whole[: len(whole) // 2])  # its header is whole
    rows[5]["image"] = "gone.jpg"
    (folder / "rows.json").write_text(json.dumps(rows))
    recipe = folder / "chain.yaml"
    recipe.write_text(
        RECIPE.format(clip=folder / "clip", llama=folder / "llama", rows=folder / "rows.json", images=folder / "images")
    )
    return {"recipe": recipe, "image": folder / "images" / "0.jpg", "folder": folder}


@pytest.fixture(scope="module")
def trained(world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    home = tmp_path_factory.mktemp("home")
    run = submit(world["recipe"], MMLAUNCH_RUNS=str(home / "runs"))
    events = wait_for(run, ended)
    assert events[-1]["state"] == "done"
    return run


@pytest.fixture(scope="module")
def merged(trained: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `trained` learnt, as a Hugging Face directory with its adapter merged."""
    folder = tmp_path_factory.mktemp("export") / "merged"
    done = mmlaunch("export", trained.root, "--to", folder, "--merge-lora")
    assert done.returncode == 0 and "step 3" in done.stdout, done.stderr
    return folder


def stranger(folder: Path, image: Path) -> list[str]:
    command = [sys.executable, "-c", STRANGER, str(folder), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.nightly  # half a minute; what is left out is listed by shorter tests too
def test_what_is_left_out_is_listed(world: dict[str, Path], trained: RunPaths) -> None:
    done = mmlaunch("data", world["recipe"], "--json", "--decode")
    part = json.loads(done.stdout)["groups"]["train"][0]
    assert (part["rows"], part["usable"], part["left"]) == (12, 10, {"bad": 2})
    listed = [json.loads(line) for line in trained.skipped.read_text().splitlines()]
    gone = next(line for line in listed if line["row"].endswith("rows.json:5"))
    assert "gone.jpg: no such file" in gone["reason"]
    assert all(line["row"].endswith(("rows.json:3", "rows.json:5")) for line in listed)
    done = mmlaunch("submit", "--cluster", "local", "--follow", world["recipe"], "-s", "data.on_bad=error")
    assert done.returncode != 0 and "gone.jpg: no such file" in done.stdout + done.stderr


def test_the_export_is_a_llava_to_everybody(
    world: dict[str, Path], trained: RunPaths, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = stranger(merged, world["image"])
    assert said[0].startswith("LlavaForConditionalGeneration") and said[1] == "True False"
    monkeypatch.chdir(tmp_path)
    usual = tmp_path / "exports" / f"{trained.name}-step-3"
    usual.parent.mkdir()
    usual.symlink_to("nowhere")
    refused = mmlaunch("export", trained.root)
    assert refused.returncode == 2 and "exists already" in refused.stderr and usual.is_symlink()
    usual.unlink()
    assert mmlaunch("export", trained.root).stdout.startswith(f"exports/{usual.name}: {trained.name}, step 3\n")
    beside = stranger(usual, world["image"])
    assert beside[0] != said[0] and (usual / "adapter" / "adapter_config.json").exists()
    names = {path.name for path in merged.iterdir()}
    assert {"README.md", "config.json", "chat_template.jinja", "generation_config.json", "tokenizer.json"} <= names
    card = (merged / "README.md").read_text()
    assert "sft, step 3" in card and "AutoModelForImageTextToText" in card
    again = mmlaunch("export", trained.root, "--to", merged)
    assert again.returncode == 2 and "exists already" in again.stderr
    wrong = mmlaunch("export", trained.root, "--to", tmp_path / "x", "--checkpoint", "2")
    assert wrong.returncode == 2 and "no checkpoint of step 2; there are: 3" in wrong.stderr


@pytest.mark.nightly  # half a minute
def test_a_run_and_its_export_are_the_same_start(world: dict[str, Path], trained: RunPaths, merged: Path) -> None:
    full = world["folder"] / "full.yaml"
    plain = world["recipe"].read_text().replace("language: lora", "language: full")
    full.write_text(plain.replace("  lora: {rank: 4, alpha: 8}\n", ""))
    options: list[Any] = [full, "-s", "steps=1", "-s", "seed=3", "-s", "resources.tasks_per_node=1"]
    first, second = (
        losses(wait_for(submit(*options, "-s", f"model.init_from={start}"), ended))[1]
        for start in (trained.root, merged)
    )
    assert first == pytest.approx(second, rel=1e-5)
    assert first < losses(list(ledger.read(trained.events)))[1] - 0.1
    other = submit(*options, "-s", f"model.init_from={trained.root}", "-s", "model.projector=linear")
    events = wait_for(other, ended)
    assert events[-1]["state"] == "failed" and "model.init_from" in str(events)
