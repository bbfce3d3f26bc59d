"""The documentation is true: links lead somewhere, recipes are right, commands exist and do what they say."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from mmlaunch.cli import commands as known_commands
from mmlaunch.cli import group
from mmlaunch.cli.schema import schema
from mmlaunch.errors import MmlaunchError, Problem, RecipeError
from mmlaunch.load.cluster import Cluster
from mmlaunch.recipe.data import FORMATS
from mmlaunch.restart import causes
from mmlaunch.run.exits import JobExit
from mmlaunch.schedulers.slurm.states import NEEDS_A_HUMAN

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SHELL = ("", "console", "bash", "sh")
"""The languages of blocks in which commands stand."""
BEHIND = ("|", ">", "<", "2>", "&&", ";")
"""What ends a command on its line."""

page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


@cache
def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found[2], "\n".join(line.removeprefix(found[1]) for line in found[3].splitlines()) + "\n",
              text.count("\n", 0, found.start()) + 1)
        for found in BLOCK.finditer(text)
    ]  # fmt: skip


@cache
def prose(page: Path) -> str:
    """A page without its blocks."""
    return BLOCK.sub("", page.read_text())


@cache
def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    names: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", prose(page), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{name}-{names[name]}" if name in names else name)
        names[name] = names.get(name, 0) + 1
    return found


@page
def test_links_lead_somewhere(page: Path) -> None:
    faults = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            faults.append(f"{target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            faults.append(f"{target}: no such heading; there are {sorted(anchors(file))}")
    assert not faults


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {target.partition("#")[0] for target in LINK.findall(prose(index))}
    assert {path.name for path in PAGES if path.parent == index.parent} - {index.name} <= linked


@page
def test_pages_say_nothing_of_one_machine(page: Path) -> None:
    assert not re.search(r"/work/|/root/|/tmp/", page.read_text())


# recipes


def mapping(block: Block) -> dict[str, object]:
    """What a YAML block holds; empty where it is no mapping, or shows several ways to write the same key."""
    keys = re.findall(r"^(\w+):", block.text, re.M)
    if block.language != "yaml" or len(keys) != len(set(keys)):
        return {}
    value = yaml.load(block.text, Loader=yaml.BaseLoader)
    return value if isinstance(value, dict) else {}


def is_recipe(block: Block) -> bool:
    """Whether a block is a recipe or a pipeline as a whole, and not a part of one."""
    keys = mapping(block)
    return "name" in keys and bool({"extends", "objective", "stages"} & set(keys))


def file_name(block: Block) -> str:
    """`my_dpo.yaml`, where the first line of a block names its file in a comment."""
    named = re.match(r"# ([\w./-]+\.\w+)\n", block.text)
    return named.group(1) if named else ""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a reader works in: the shipped recipes, and every file that the pages tell to write."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copytree(ROOT / "templates" / "clusters", tmp_path / "templates" / "clusters")
    for page in PAGES:
        for block in blocks(page):
            if name := file_name(block):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(recipe: str) -> Sequence[Problem]:
    """What `mmlaunch validate` finds wrong in a recipe."""
    done = CliRunner().invoke(group, ["validate", recipe])
    assert done.exit_code == 0 or isinstance(done.exception, RecipeError), done.output
    return done.exception.problems if isinstance(done.exception, RecipeError) else ()


@page
def test_recipes_are_right(page: Path, folder: Path) -> None:
    for block in filter(is_recipe, blocks(page)):
        name = file_name(block) or f"recipes/{page.stem}-{block.line}.yaml"
        (folder / name).write_text(block.text)
        faults = [one for one in problems(name) if not one.what.startswith("no run, checkpoint or model folder")]
        assert not faults, f"{page.name}:{block.line}: {faults}"


@page
def test_parts_of_recipes_have_keys_and_values_that_exist(page: Path) -> None:
    whole = schema()
    validator = jsonschema.Draft202012Validator(whole)
    for block in blocks(page):
        part = mapping(block)
        if part and not is_recipe(block) and set(part) <= set(whole["properties"]):
            faults = [*validator.iter_errors(as_json(block))]
            assert not faults, f"{page.name}:{block.line}: {faults[0].json_path}: {faults[0].message[:300]}"


def as_json(block: Block) -> object:
    """A block as an editor reads it, with times as the texts that they are."""
    text = re.sub(r"\b(\d+:\d\d:\d\d)\b", r'"\1"', block.text)
    text = re.sub(r"(?<=[ \[])(\d+)(e-?\d+)\b", r"\1.0\2", text)
    text = re.sub(r"(\.\de)(\d)", r"\1+\2", text)
    return json.loads(json.dumps(yaml.safe_load(text)))


# commands


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every command of mmlaunch that a page shows, with its place: in blocks, and in the midst of a sentence."""
    for block in blocks(page):
        if block.language not in SHELL:
            continue
        text = block.text.replace("\\\n", " ")
        for number, line in enumerate(text.splitlines()):
            for found in re.findall(r"(?:^|^\$ |\| |&& )(mmlaunch .*)", line):
                shown = found if block.language else re.split(r" {3,}|(?<=\S)  (?=[a-z])", found)[0]
                yield f"{page.name}:{block.line + number + 1}", words(shown)
    for found in re.findall(r"`(mmlaunch [^`]+)`", re.sub(r"\s*\n\s*", " ", prose(page))):
        yield f"{page.name}: {found}", words(found)


def words(line: str) -> list[str]:
    """The arguments of a command: what may be left out counts as written, `RUN...` as RUN."""
    line = re.sub(r"(?<= )\[([^\]]+)\]", r"\1", line).replace("-s ...", "-s PATH=VALUE")
    line = line.replace("...", "").replace("…", "")
    said = shlex.split(line, comments=True)[1:]
    end = next((place for place, word in enumerate(said) if word in BEHIND), len(said))
    return ["PATH=VALUE" if before == "-s" and "=" not in word else word
            for before, word in zip(["", *said], said[:end], strict=False)]  # fmt: skip


@page
def test_commands_exist(page: Path) -> None:
    faults = []
    for place, arguments in commands(page):
        try:
            parse(arguments)
        except (click.ClickException, MmlaunchError, AssertionError) as error:
            faults.append(f"{place}: {' '.join(arguments)}: {error}")
    assert not faults, "\n".join(faults)


def parse(arguments: list[str]) -> None:
    """Read arguments as the command does, without doing anything."""
    if not arguments or arguments[0].startswith("-"):
        return
    with group.make_context("mmlaunch", list(arguments)) as context:
        name, command, rest = group.resolve_command(context, list(arguments))
        assert command is not None, f"no command {name}"
        eager = {flag for option in command.params if option.is_eager for flag in option.opts}
        if rest and not eager & set(rest):  # a sentence may only name a command
            command.make_context(name, rest, parent=context)


@page
def test_recipes_that_commands_name_are_shipped(page: Path) -> None:
    named = {word for _, arguments in commands(page) for word in arguments if word.startswith("recipes/")}
    assert [name for name in named if not [*ROOT.glob(name)] and name != "recipes/broken.yaml"] == []


def is_harmless(arguments: list[str]) -> bool:
    """Whether a command can be run here: it needs no run, no cluster and no model, and its recipes are there."""
    recipes = [word for word in arguments[1:] if word.endswith((".yaml", ".yml")) and "=" not in word]
    starts_nothing = arguments[:1] == ["submit"] and "--dry-run" in arguments
    if arguments[:1] in (["validate"], ["render"], ["estimate"]) or starts_nothing:
        return bool(recipes) and all([*Path().glob(word)] for word in recipes)
    return arguments[:1] in (["schema"], ["completion"]) or arguments[:2] == ["data", "--formats"]


@page
def test_commands_that_start_nothing_do_what_they_say(page: Path, folder: Path) -> None:
    for place, arguments in commands(page):
        if arguments and is_harmless(arguments) and profile_is_there(arguments):
            runs(*[found for word in arguments for found in expanded(word)], where=place)


def profile_is_there(arguments: list[str]) -> bool:
    name = arguments[arguments.index("--cluster") + 1] if "--cluster" in arguments else "local"
    return (ROOT / "templates" / "clusters" / f"{name}.yaml").is_file() or Path(name).is_file()


def expanded(word: str) -> list[str]:
    """What a shell makes of a word."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def runs(*arguments: str, where: str) -> str:
    """The output of a command, which has to end well."""
    done = CliRunner().invoke(group, list(arguments))
    assert done.exit_code == 0, f"{where}: mmlaunch {' '.join(arguments)}: {done.exception}\n{done.output[-2000:]}"
    return done.output


@page
def test_python_compiles(page: Path) -> None:
    for block in blocks(page):
        if block.language in ("python", "py"):
            compile(textwrap.dedent(block.text), f"{page.name}:{block.line}", "exec")


# what is made from the code


def test_the_page_of_fields_is_made_from_the_schema() -> None:
    """`mmlaunch schema --markdown > docs/recipes.md` writes it anew."""
    assert (ROOT / "docs" / "recipes.md").read_text() == runs("schema", "--markdown", where="docs/recipes.md")


def test_the_page_of_fields_has_them_all() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    for name, section in schema()["$defs"].items():
        whole = section if "properties" in section else section.get("anyOf", [{}])[0]
        for key, field in whole.get("properties", {}).items():
            assert f"| `{key}` |" in text, f"{name}.{key}"
            assert "default" not in field or not isinstance(field["default"], dict) or not field["default"]


RETRIED = {
    "crash": "yes, within `restarts.crash`",
    "node": "yes, within `restarts.node`",
    "hang": "yes, within `restarts.hang`",
    "free": "yes, free while the run advances",
    "final": "no",
}


def test_every_cause_has_its_row_in_troubleshooting() -> None:
    """What `mmlaunch why` says of a cause, and whether it is retried, stands there word for word."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = [f"| `{cause.name}` | {cause.why} | {RETRIED[cause.budget]} |" for cause in causes.TABLE
            if cause.name not in (causes.DONE, causes.CANCELLED)]  # fmt: skip
    assert [row for row in rows if row not in text] == [], "write:\n" + "\n".join(rows)
    named = re.findall(r"^\| `([\w ]+)` \| [A-Z][^|]+ \| (?:yes|no)\b", text, re.M)
    assert set(named) <= {cause.name for cause in causes.TABLE}


def test_every_reason_to_wait_for_a_human_has_its_row_in_troubleshooting() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = [f"| `{reason}` | {advice.format(job='JOB')} |" for reason, advice in NEEDS_A_HUMAN.items()]
    assert [row for row in rows if row not in text] == [], "write:\n" + "\n".join(rows)


def test_every_key_of_a_profile_has_its_row() -> None:
    rows = "".join(re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs" / "clusters.md").read_text(), re.M))
    assert [key for key in Cluster.model_fields if f"`{key}`" not in rows and key != "description"] == []


def test_every_command_has_its_row() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    assert [name for name in known_commands() if f"| `mmlaunch {name}" not in text] == []


def test_every_format_is_shown_with_a_row() -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    assert [name for name, kind in FORMATS.items() if kind.example and kind.example not in text] == []
    assert [name for name in FORMATS if f"`{name}`" not in text] == []


def test_exit_codes_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    assert [int(code) for code in JobExit if code and f"| {int(code)} |" not in text] == []


@pytest.mark.nightly
def test_the_first_run_goes_as_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `bash` block of the page, one after the other: what a new user does behind the installation."""
    monkeypatch.delenv("MMLAUNCH_RUNS")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    page = ROOT / "docs" / "first-run.md"
    (made,) = re.findall(r"^first-run:.*\n\t\$\(VENV\)/bin/(mmlaunch .*)", (ROOT / "Makefile").read_text(), re.M)
    assert f"`{made}`" in page.read_text()
    printed = []
    for text in [made, *(block.text for block in blocks(page) if block.language == "bash")]:
        command = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, f"{text}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        printed.append(done.stdout)
    assert any(text.endswith("It is red.\n") for text in printed)
    assert (folder / "models" / "my-dpo" / "config.json").is_file()
