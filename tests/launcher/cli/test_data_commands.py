"""`mmlaunch convert`, `split` and `decontaminate` as users type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.runs import mmlaunch

from mmlaunch.errors import MachineError, MmlaunchError
from mmlaunch.submit import run_task

PAIR = {"chosen": "a", "rejected": "b"}


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made = [{"question": f"Question {number}", "label": "x", **PAIR} for number in range(10)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*made, {"question": "Half"}]))
    return path


def test_convert_says_what_it_wrote_and_what_comes_next(rows: Path) -> None:
    done = mmlaunch("convert", "rows.jsonl", "--to", "llava", "out.json")
    assert done.returncode == 2 and done.stdout == "" and not Path("out.json").exists()
    assert done.stderr == (
        "error: rows.jsonl:11: no column chosen; it has question; mend it, or leave such rows out with --on-bad skip\n"
    )
    done = mmlaunch("convert", "rows.jsonl", "--to", "llava", "out.json", "--on-bad", "skip")
    assert done.returncode == 0 and done.stdout.splitlines() == [
        "out.json: 10 rows of the llava format, from rows.jsonl (rlaif_v)",
        "left out: 1 bad",
        "  rows.jsonl:11: no column chosen; it has question",
        "next: {path: out.json, format: llava, images: none} in a recipe's data",
    ]
    assert len(json.loads(Path("out.json").read_text())) == 10
    assert mmlaunch("convert", "rows.jsonl", "--to", "nope", "out.jsonl").returncode == 2
    assert mmlaunch("convert", "gone.jsonl", "--to", "trl", "out.jsonl").returncode == 2


def test_split_and_decontaminate_show_a_table(rows: Path) -> None:
    shown = mmlaunch("split", "rows.jsonl", "parts", "--parts", "train=80,test=20", "--on-bad", "skip").stdout
    assert "train  8     80.0 %" in shown and "test   2     20.0 %" in shown and "left out: 1 bad" in shown
    assert json.loads(Path("parts/test.jsonl").read_text().splitlines()[0])["label"] == "x", "every field is kept"
    arguments = ("rows.jsonl", "--against", "parts/test.jsonl", "--output", "clean.jsonl", "--on-bad", "skip")
    shown = mmlaunch("decontaminate", *arguments).stdout
    assert "clean.jsonl: 8 of 11 rows kept, 2 removed" in shown and "parts/test.jsonl  2" in shown
    assert "next: less clean.removed.jsonl shows" in shown
    done = mmlaunch("decontaminate", *arguments, "--overwrite", "--json")
    assert json.loads(done.stdout)["by"] == [{"against": "parts/test.jsonl", "why": "text", "rows": 2}]


def test_a_program_says_what_it_needs_and_how_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineError, match="this Python has no no_such_library; type it where runs train"):
        run_task.run("own_program", [], needs=("json", "no_such_library"))
    (tmp_path / "own_program.py").write_text('print(\'{"error": "what", "exit_code": 3}\')')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(MmlaunchError, match="what") as caught:
        run_task.run("own_program", [], needs=())
    assert caught.value.exit_code == 3
