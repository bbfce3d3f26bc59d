"""`mmlaunch export --push`: the hub's own client sends an export to a server that answers as the hub does."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.runs import mmlaunch

from mmlaunch.errors import RecipeError
from mmlaunch.load import load_recipe
from mmlaunch.run.paths import RunPaths

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
TOKEN = "hf_" + "x" * 34


@dataclass
class Hub:
    """What it was asked, and the files that it has."""

    address: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuses: bool = False


@pytest.fixture
def server() -> Iterator[Hub]:
    kept = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.body()
            kept.tokens.add(str(self.headers["Authorization"]))
            if kept.refuses:
                self.answer({"error": "Invalid credentials"}, 401)
            elif self.path == "/api/repos/create":
                kept.created.append(json.loads(body))
                self.answer({"url": f"{kept.address}/lab/model"})
            elif "/preupload/" in self.path:
                names = [one["path"] for one in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self.answer({"files": modes})
            elif "/commit/" not in self.path:  # it checks the model card
                self.answer({"errors": [], "warnings": []})
            else:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        kept.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                oid = "c" * 40
                self.answer({"success": True, "commitOid": oid, "commitUrl": f"{kept.address}/lab/model/commit/{oid}"})

        def do_GET(self) -> None:
            self.answer({"id": "lab/model", "sha": "a" * 40, "siblings": []})

        def body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            pieces = []  # in chunks, each behind its length
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)

        def answer(self, content: dict[str, Any], code: int = 200) -> None:
            text = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    kept.address = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield kept
    http.shutdown()
    http.server_close()


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunPaths, Path]:
    """A run and its export, as far as both are looked at."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMLAUNCH_RUNS", str(tmp_path / "runs"))
    run = RunPaths(tmp_path / "runs" / "sft-1129-abcd")
    run.root.mkdir(parents=True)
    from mmlaunch.recipe import resolved

    run.resolved.write_text(resolved.text_of(load_recipe(RECIPES / "quickstart.yaml", ["push_to=lab/model"]).recipe))
    folder = tmp_path / "exports" / "sft"
    folder.mkdir(parents=True)
    for name, text in {"recipe.yaml": "name: sft\n", "config.json": "{}", "README.md": "# A model\n"}.items():
        (folder / name).write_text(text)
    return run, folder


def visibility(asked: dict[str, Any]) -> str:
    """As old and new clients ask for it."""
    return str(asked.get("visibility") or ("private" if asked.get("private") else "public"))


def test_an_export_is_sent(exported: tuple[RunPaths, Path], server: Hub, tmp_path: Path) -> None:
    run, folder = exported
    environment = {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    sent = mmlaunch("export", run.name, "--to", str(folder), "--push", **environment)
    assert sent.returncode == 0, sent
    assert f"sent to {server.address}/lab/model" in sent.stdout
    assert server.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert (server.created[0]["name"], visibility(server.created[0])) == ("model", "private")
    assert server.tokens == {f"Bearer {TOKEN}"}
    public = mmlaunch("export", run.name, "--to", str(folder), "--push", "lab/other", "--public", **environment)
    assert public.returncode == 0, public
    assert (server.created[1]["name"], visibility(server.created[1])) == ("other", "public")


def test_what_goes_wrong_keeps_the_export(exported: tuple[RunPaths, Path], server: Hub, tmp_path: Path) -> None:
    run, folder = exported
    server.refuses = True
    environment = {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    refused = mmlaunch("export", run.name, "--to", str(folder), "--push", **environment)
    assert refused.returncode == 4 and "lab/model: cannot be sent" in refused.stderr and "401" in refused.stderr, (
        refused
    )
    assert TOKEN not in refused.stderr and (folder / "config.json").is_file()
    odd = mmlaunch("export", run.name, "--to", str(folder), "--push", "model", **environment)
    assert odd.returncode == 2 and "write ORG/NAME" in odd.stderr


@pytest.mark.parametrize("refuses", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_finished_run_sends_its_model(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    """And one whose model cannot be sent is done all the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMLAUNCH_RUNS", str(tmp_path / "runs"))
    server.refuses = refuses
    environment = {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    few = ["steps=2", "data.train.limit=20", "data.eval.limit=4", "optim.warmup=0 steps"]
    given = [part for one in (*few, "resources.tasks_per_node=1", "push_to=lab/model") for part in ("-s", one)]
    recipe = str(RECIPES / "quickstart.yaml")
    done = mmlaunch("submit", recipe, "--cluster", "local", "--follow", *given, **environment)
    assert done.returncode == 0, done
    (run,) = (RunPaths(path) for path in (tmp_path / "runs").iterdir() if not path.name.startswith("."))
    sent = {path.name: path.read_bytes() for path in run.export(2).iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= sent.keys()
    assert server.files == ({} if refuses else sent)
    assert ("push_to: lab/model: cannot be sent" in done.stdout) == refuses


def test_toys_and_sweeps_send_nothing_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = str(RECIPES / "quickstart.yaml")
    shown = mmlaunch("submit", recipe, "--cluster", "local", "--toy", "--dry-run", "-s", "push_to=lab/model")
    assert "push_to.at_end" in shown.stdout, shown


def test_a_recipe_names_its_repository() -> None:
    with pytest.raises(RecipeError, match="is no name of a repository; write ORG/NAME"):
        load_recipe(RECIPES / "quickstart.yaml", ["push_to=model"])
