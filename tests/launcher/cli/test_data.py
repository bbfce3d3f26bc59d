"""`mmlaunch data`: numbers, samples with their masks, and a page that a browser shows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from tests.runs import mmlaunch

from mmlaunch.recipe.data import FORMATS

RECIPE = """
name: look
model: {vision: {random: {}}, language: {random: {}}, tiling: {kind: dynamic, max_tiles: 4}}
data:
  train: {path: rows.json, format: llava, images: images, repeat: 1.5}
  eval: {format: shapes, limit: 5}
  on_bad: skip
  max_tokens: 400
objective: sft
optim: {lr: 1e-3}
batch: {global: 2, tokens_per_gpu: 512}
steps: 2
resources: {nodes: 1, gpus_per_node: 0, tasks_per_node: 1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (300, 200), "red").save(tmp_path / "images" / "a.jpg")
    (tmp_path / "images" / "empty.jpg").touch()

    def row(image: str | None, question: str, answer: str) -> dict[str, object]:
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"conversations": talk, **({"image": image} if image else {})}

    rows = [
        row("a.jpg", "<image>\nWhat is <b>this</b>?", "A red field."), row(None, "Say <image>", "No."),
        row("empty.jpg", "?", "x"), row(None, "Long?", "x" * 900),
    ]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "look.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_numbers_reasons_and_samples(folder: Path) -> None:
    result = json.loads(mmlaunch("data", "look.yaml", "--json", "--samples", "2").stdout)
    part = result["groups"]["train"][0]
    assert (part["rows"], part["usable"], part["left"], part["repeat"]) == (4, 2, {"bad": 1, "overlong": 1}, 1.5)
    assert part["width"]["max"] == 300 and part["images"] == {"min": 0, "median": 0, "p99": 1, "max": 1}
    assert result["examples"] == 3 and 0 < result["fill"] <= 1
    shown = mmlaunch("data", "look.yaml", "--samples", "0").stdout
    assert "left out 1 bad, 1 overlong" in shown and "empty.jpg: is empty (0 bytes)" in shown
    assert "more than 400" in shown and "3 examples an epoch; packed rows are" in shown
    strict = mmlaunch("data", "look.yaml", "--samples", "0", "-s", "data.on_bad=error")
    assert strict.returncode == 2 and "a run would stop at these rows" in strict.stderr and "left out" in strict.stdout
    first, second = result["samples"]
    assert first["prompt"][1] == ["<image> x 80", False, "images"] and first["pictures"] == [5, 3, 32, 32]
    assert first["answers"] == [[["A red field.", True, "text"], ["</s>", True, "special"]]]
    assert second["prompt"][-1][0] == "Say <image>\n" and second["pictures"][0] == 0


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium; apt-get install chromium")
def test_the_page_opens_in_a_browser(folder: Path) -> None:
    done = mmlaunch("data", "look.yaml", "--samples", "2", "--html", "page.html")
    assert done.returncode == 0 and "open page.html in a browser" in done.stdout
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", (folder / "page.html").as_uri()]
    home = {**os.environ, "HOME": str(folder)}
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=home).stdout
    assert "<h1>look: what the model sees</h1>" in dom and "What is &lt;b&gt;this&lt;/b&gt;?" in dom
    assert dom.count('<img alt="what the model sees" src="data:image/png;base64,') == 5
    assert '<span class="text in_loss">A red field.</span>' in dom


def test_nothing_is_written_on_bad_input(folder: Path) -> None:
    done = mmlaunch("data", "look.yaml", "--html", "nowhere/page.html")
    assert done.returncode == 2 and "there is no folder" in done.stderr
    done = mmlaunch("data", "look.yaml", "-s", "data.train.path=gone.json")
    assert done.returncode == 2 and "gone.json" in done.stderr and "Traceback" not in done.stderr


def test_formats_are_shown_by_a_row_of_each() -> None:
    shown = mmlaunch("data", "--formats").stdout
    for name, kind in FORMATS.items():
        assert not kind.example or f"{name}\n  {kind.example}\n" in shown
    assert {name for name, kind in FORMATS.items() if not kind.example} == {"auto", "shapes"}


def test_the_page_marks_chosen_and_rejected_and_fits_a_phone(folder: Path) -> None:
    (folder / "pair.yaml").write_text(
        RECIPE.replace(
            "path: rows.json, format: llava, images: images, repeat: 1.5", "format: shapes, limit: 4"
        ).replace("objective: sft", "objective: dpo")
    )
    shown = mmlaunch("data", "pair.yaml", "--html", "pairs.html", "--samples", "1").stdout
    page = (folder / "pairs.html").read_text()
    assert "chosen (score 2)" in shown and "rejected (score 1)" in shown
    assert page.count("<div class=chosen><h3>chosen, score 2</h3>") == 1
    assert page.count("<div class=rejected><h3>rejected, score 1</h3>") == 1
    assert "name=viewport content='width=device-width" in page and "max-width: 100%" in page
