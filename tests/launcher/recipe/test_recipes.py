"""Recipes that are right: what they mean, what they extend, and how the command line changes them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mmlaunch.cli.schema import schema
from mmlaunch.errors import RecipeError
from mmlaunch.load import cluster as clusters
from mmlaunch.load import load_recipe
from mmlaunch.load.pipeline import load_pipeline
from mmlaunch.load.recipe import is_pipeline
from mmlaunch.recipe import resolved
from mmlaunch.recipe.check import recipe_of
from mmlaunch.recipe.objective import METHODS
from mmlaunch.recipe.preference import PRESETS, Preference
from mmlaunch.recipe.section import Section
from mmlaunch.recipe.terms import Terms
from mmlaunch.run.paths import RunPaths
from mmlaunch.submit import plan as plans
from mmlaunch.submit.render import Renderer

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
PIPELINES = [path for path in sorted(RECIPES.glob("*.yaml")) if is_pipeline(path)]
SHIPPED = [path for path in sorted(RECIPES.glob("*.yaml")) if path not in PIPELINES]
BARE = """\
name: r
model: {language: l, vision: v}
data: {train: d.json}
optim: {lr: 1e-5}
batch: {global: 8}
epochs: 1
"""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_are_right_and_read_back(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path).recipe
    (tmp_path / "resolved.yaml").write_text(resolved.text_of(recipe))
    assert resolved.read(tmp_path / "resolved.yaml") == recipe
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_shipped_pipelines_are_right(path: Path) -> None:
    loaded = load_pipeline(path)
    assert len(loaded.stages) > 2 and any(stage.references for stage in loaded.stages)
    assert path.read_text().startswith("# ")


def test_every_stage_has_a_recipe() -> None:
    methods = {load_recipe(path).recipe.objective.method for path in SHIPPED}
    assert {"sft", "reward", "dpo", "mdpo", "mpo", "mmpo", "ppo", "predict"} <= methods
    assert RECIPES / "dpo_llama3.yaml" in SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_json_schema_accepts_what_the_models_accept(path: Path) -> None:
    document = yaml.safe_load(resolved.text_of(load_recipe(path).recipe))
    validator = jsonschema.Draft202012Validator(schema())
    assert [error.message for error in validator.iter_errors(json.loads(json.dumps(document)))] == []


def as_written(path: Path) -> object:
    """A recipe file as an editor reads it: YAML 1.2's numbers, short forms and all."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+$"), list("-+0123456789.")
    )
    Loader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] not in ("tag:yaml.org,2002:timestamp",)]
        for first, pairs in Loader.yaml_implicit_resolvers.items()
    }
    return json.loads(json.dumps(yaml.load(path.read_text().replace("24:00:00", "24h"), Loader=Loader)))


@pytest.mark.parametrize("path", [*SHIPPED, *(RECIPES / "base").glob("*.yaml")], ids=lambda path: path.name)
def test_the_json_schema_accepts_the_files_as_they_are_written(path: Path) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    assert [f"{error.json_path}: {error.message[:80]}" for error in validator.iter_errors(as_written(path))] == []


def test_the_json_schema_refuses_unknown_keys_and_values() -> None:
    document = yaml.safe_load(resolved.text_of(load_recipe(RECIPES / "sft_llama3.yaml").recipe))
    validator = jsonschema.Draft202012Validator(schema())
    assert not validator.is_valid({**document, "beta": 1})
    assert not validator.is_valid({**document, "precision": "fp8"})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_ships_renders(path: Path) -> None:
    recipe = load_recipe(path).recipe
    name, cluster = clusters.choose("slurm")
    plan = plans.make(recipe, cluster, name, RunPaths(Path("/runs/a")), Path("/home/user/project"))
    assert f"#SBATCH --nodes={recipe.resources.nodes}" in Renderer(path.parent).script(plan)
    written = json.loads(Renderer(path.parent).deepspeed(plan))
    assert written["zero_optimization"]["stage"] == recipe.deepspeed.stage


PUBLISHED: dict[str, tuple[Any, ...]] = {  # method, its numbers, lr, global batch, epochs, ZeRO stage
    "dpo_llama2": ("dpo", {"beta": 0.1}, 5e-6, 256, 1, 0),
    "dpo_llama3": ("dpo", {"beta": 0.1}, 5e-6, 256, 1, 0),
    "dpo_idefics2": ("dpo", {"beta": 0.1}, 5e-6, 64, 1, 0),
    "reward_llama2": ("reward", {"loss": "ranked"}, 1e-6, 128, 1, 0),
    "reward_llama3": ("reward", {"loss": "ranked"}, 1e-6, 128, 1, 0),
    "mdpo_bunny": ("mdpo", {"beta": 0.1}, 1e-5, 32, 3, 0),
    "mdpo_llama3": ("mdpo", {"beta": 0.1}, 1e-5, 32, 3, 0),
    "mdpo_llava15_7b": ("mdpo", {"beta": 0.1}, 1e-5, 32, 3, 0),
    "mpo_llama3": ("mpo", {"beta": 0.1}, 5e-6, 256, 1, 0),
    "mpo_internvl25_1b": ("mpo", {"beta": 0.1}, 1e-6, 256, 1, 1),
    "mpo_internvl25_2b": ("mpo", {"beta": 0.1}, 1e-6, 256, 1, 1),
    "mpo_internvl25_8b": ("mpo", {"beta": 0.1}, 1e-6, 256, 1, 1),
    "mpo_internvl25_78b": ("mpo", {"beta": 0.1}, 1e-6, 512, 1, 3),
    "mmpo_gemma2b": ("mmpo", {"beta": 0.01, "gamma": 2.2}, 1e-5, 64, 3, 2),
    "mmpo_gemma7b": ("mmpo", {"beta": 0.01, "gamma": 0.3}, 5e-7, 64, 1, 3),
    "mmpo_gemma7b_shp": ("mmpo", {"beta": 0.01, "gamma": 1.1}, 5e-7, 64, 3, 3),
    "mmpo_llama3": ("mmpo", {"beta": 0.01, "gamma": 2.2}, 5e-7, 64, 3, 3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_recipes_have_their_papers_numbers(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml").recipe
    method, numbers, *rest = PUBLISHED[name]
    said = recipe.objective.model_dump()
    if isinstance(recipe.objective, Preference) and recipe.objective.terms.margin:
        said["gamma"] = recipe.objective.terms.margin.gamma
    assert recipe.objective.method == method
    assert {key: said[key] for key in numbers} == numbers
    assert [recipe.optim.lr, recipe.batch.examples, recipe.epochs, recipe.deepspeed.stage] == rest


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("mdpo")])
def test_mdpo_has_its_papers_adapters_and_schedule(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml").recipe
    lora, optim = recipe.model.lora, recipe.optim
    assert lora is not None and (lora.rank, lora.alpha, lora.dropout, lora.targets) == (64, 128, 0.05, "all-linear")
    assert (optim.weight_decay, optim.betas, optim.warmup.share) == (0.05, [0.9, 0.98], 0.1)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "internvl25" in name])
def test_internvl_trains_everything_on_long_examples(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml").recipe
    train = recipe.model.train
    assert (train.vision, train.projector, train.language) == ("full", "full", "full")
    assert recipe.model.activation_checkpointing == "on"
    assert (recipe.data.max_tokens, recipe.data.train[0].max_tiles) == (8192, 12)
    assert (recipe.optim.warmup.share, recipe.optim.weight_decay) == (0.03, 0.05)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("mmpo")])
def test_mmpo_reads_text_of_its_papers_length(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml").recipe
    assert (recipe.data.max_tokens, recipe.optim.warmup.share) == (1024, 0.3)
    assert recipe.model.vision is None


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_word(write: Callable[..., Path], method: str) -> None:
    if method in ("ppo", "grpo", "rloo", "score", "preference"):
        with pytest.raises(RecipeError, match=r"has no rewards|no term has any weight"):
            load_recipe(write(BARE + f"objective: {method}\n"))
        return
    assert load_recipe(write(BARE + f"objective: {method}\n")).recipe.objective.method == method


def test_presets_are_their_papers() -> None:
    def weights(name: str) -> dict[str, float]:
        return {key: term.weight for key, term in Preference.model_validate({"method": name}).terms.active.items()}

    assert weights("dpo") == {"sigmoid": 1.0}
    assert weights("mdpo") == {"sigmoid": 1.0, "image_conditional": 1.0, "anchor": 1.0}
    assert weights("mpo") == {"sigmoid": 0.8, "bco": 0.2, "sft": 1.0}
    assert weights("mmpo") == {"margin": 1.0}
    assert Preference(method="mmpo").beta == 0.01 and Preference(method="dpo").beta == 0.1
    assert weights("orpo") == {"sft": 1.0, "orpo": 0.1} and weights("simpo") == {"simpo": 1.0}
    assert set(PRESETS) == {"dpo", "mdpo", "mpo", "mmpo", "orpo", "simpo"}


def test_a_mixture_of_its_own(write: Callable[..., Path]) -> None:
    text = BARE + "objective: {terms: {sigmoid: 0.8, bco: 20%, simpo: {weight: 0.1, gamma: 1}}, beta: 0.2}\n"
    with pytest.raises(RecipeError, match="bco"):
        load_recipe(write(text))
    objective = load_recipe(write(text.replace("20%", "0.2"))).recipe.objective
    assert isinstance(objective, Preference)
    assert {name: term.weight for name, term in objective.terms.active.items()} == {
        "sigmoid": 0.8,
        "bco": 0.2,
        "simpo": 0.1,
    }
    assert set(objective.terms.active) < set(Terms.model_fields)


def test_text_means_what_the_field_wants(write: Callable[..., Path]) -> None:
    text = (
        BARE.replace("name: r", "name: 007").replace("language: l", "language: no").replace("global: 8", 'global: "8"')
    )
    text += "objective: sft\ndeepspeed: {overrides: {a: 1e-5, b: on, c: {d: 0o17, e: true}}}\nseed: 012\n"
    recipe = load_recipe(write(text)).recipe
    assert recipe.name == "007" and recipe.seed == 12
    assert recipe.model.language is not None and recipe.model.language.path == "no"
    assert recipe.optim.lr == 1e-5 and recipe.batch.examples == 8
    assert recipe.deepspeed.overrides == {"a": 1e-5, "b": "on", "c": {"d": "0o17", "e": True}}


def test_extends_merges_mappings_and_replaces_the_rest(write: Callable[..., Path]) -> None:
    write(
        BARE + "objective: sft\noptim: {lr: 1e-5, clip: 2}\n".replace("optim: {lr: 1e-5, clip: 2}\n", ""), "base/a.yaml"
    )
    write("extends: a.yaml\noptim: {clip: 2}\ndata: {train: [x.json, y.json]}\n", "base/b.yaml")
    recipe = load_recipe(write("extends: base/b.yaml\noptim: {lr: 2e-5}\n")).recipe
    assert (recipe.optim.lr, recipe.optim.clip) == (2e-5, 2.0)
    assert [source.path for source in recipe.data.train] == ["x.json", "y.json"]


def test_a_mistake_in_a_base_is_placed_there(write: Callable[..., Path]) -> None:
    base = write(BARE + "objective: stf\n", "base.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write("extends: base.yaml\nseed: x\n"))
    assert [problem.place for problem in caught.value.problems] == [
        f"{base.parent / 'recipe.yaml'}:2:7",
        f"{base}:7:12",
    ]


def test_extends_in_a_circle(write: Callable[..., Path]) -> None:
    write("extends: recipe.yaml\n", "other.yaml")
    with pytest.raises(
        RecipeError, match=r"other\.yaml:1:10: extends: extends itself: recipe\.yaml -> other\.yaml -> recipe\.yaml"
    ):
        load_recipe(write("extends: other.yaml\n"))


def test_a_recipe_that_ships_can_be_extended_from_anywhere(write: Callable[..., Path]) -> None:
    text = BARE.replace("model: {language: l, vision: v}", "extends: base/llama3_clip.yaml").replace("8", "32")
    text += "objective: sft\n"
    assert load_recipe(write(text)).recipe.model.chat_template == "llama-3"


def test_shipped_recipes_are_found_by_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("recipes/dpo_llama3.yaml").recipe.name == "dpo-llama3-8b"


OVERRIDES = {
    "optim.lr=2e-5": lambda r: r.optim.lr == 2e-5,
    "objective.beta=0.3": lambda r: r.objective.beta == 0.3 and r.objective.method == "dpo",
    "objective=ipo": lambda r: r.objective.method == "ipo",
    "objective={method: mpo, beta: 0.2}": lambda r: r.objective.beta == 0.2,
    "data.train[0].limit=5": lambda r: r.data.train[0].limit == 5,
    "data.train.1.repeat=2": lambda r: r.data.train[1].repeat == 2,
    "resources={nodes: 2, gpus_per_node: 4}": lambda r: r.resources.world == 8,
    "env=[A, B=1]": lambda r: r.env == ["A", "B=1"],
    "name=a=b": None,
    "checkpoint.best=": lambda r: r.checkpoint.best is None,
}


@pytest.mark.parametrize("recipe", ["predict_llama3", "sft_llama3"])
def test_an_override_reaches_the_one_element_that_stands_without_a_list(recipe: str) -> None:
    group = "input" if recipe == "predict_llama3" else "train"
    data = load_recipe(RECIPES / f"{recipe}.yaml", [f"data.{group}[0].limit=5"]).recipe.data
    assert [source.limit for source in data.inputs] == [5]


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides(override: str) -> None:
    right = OVERRIDES[override]
    if right is None:
        with pytest.raises(RecipeError, match="-s name=a=b"):
            load_recipe(RECIPES / "dpo_llama3.yaml", [override])
    else:
        assert right(load_recipe(RECIPES / "dpo_llama3.yaml", [override]).recipe)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.lr", "is not path=value"),
        ("=3", "is not path=value"),
        ("optim.learning_rate=3", "did you mean optim.lr?"),
        ("optim.lr=[1", "bracket"),
        ("data.train[7].limit=5", "it has 2 items"),
        ("data.train.limit=5", "write -s data.train[0].limit="),
        ("optim.lr.x=5", "is the text '5e-6', not a section"),
        ("optim..lr=5", "is not a path"),
        ("batch.global=250", "224 or 256 would"),
        ("seed=!!python/name:os.system", "is refused"),
    ],
)
def test_wrong_overrides_are_named(override: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(RECIPES / "dpo_llama3.yaml", [override])
    assert says in str(caught.value)
    assert f"-s {override}" in str(caught.value)


def test_anchors_and_merge_keys(write: Callable[..., Path]) -> None:
    text = (
        BARE.replace("train: d.json", "train: [&a {path: x.json, limit: 5}, {<<: *a, path: y.json}]")
        + "objective: sft\n"
    )
    sources = load_recipe(write(text)).recipe.data.train
    assert [(source.path, source.limit) for source in sources] == [("x.json", 5), ("y.json", 5)]


def test_short_forms_merge_as_the_sections_they_stand_for(write: Callable[..., Path]) -> None:
    base = BARE.replace("vision: v", "vision: v, tiling: pad").replace("global: 8", "global: 32")
    write(base + "objective: {method: dpo, beta: 0.3}\nresources: {nodes: 2}\n", "base.yaml")
    write("extends: base.yaml\nobjective: dpo\n", "word.yaml")
    text = "extends: word.yaml\nmodel: {tiling: {max_side: 900}, vision: {feature_layer: -1}}\nobjective: {beta: 0.2}\n"
    recipe = load_recipe(write(text + "resources:\n")).recipe
    model, objective = recipe.model, recipe.objective
    assert (model.tiling.kind, model.tiling.max_side) == ("pad", 900)
    assert model.vision is not None and (model.vision.path, model.vision.feature_layer) == ("v", -1)
    assert isinstance(objective, Preference) and (objective.method, objective.beta) == ("dpo", 0.2)
    assert recipe.resources.nodes == 2


def test_a_resolved_recipe_is_the_recipe_again(write: Callable[..., Path]) -> None:
    """Jobs read the resolved file, which has every default written out."""
    text = """
name: whole
model: {pretrained: llava-hf/llava-1.5-7b-hf}
data: {train: {path: data/x.json, format: llava, images: none}}
objective: sft
optim: {lr: 1e-5}
batch: {global: 8, micro: 1}
steps: 1
resources: {nodes: 1, gpus_per_node: 8}
"""
    recipe = load_recipe(str(write(text)), []).recipe
    assert recipe_of(yaml.safe_load(resolved.text_of(recipe))) == recipe


def test_a_single_source_is_item_0_of_its_list() -> None:
    quickstart = next(path for path in SHIPPED if path.name == "quickstart.yaml")
    assert load_recipe(quickstart, ["data.train[0].limit=7"]).recipe.data.train[0].limit == 7
    with pytest.raises(RecipeError, match="there is no item"):
        load_recipe(quickstart, ["data.train[1].limit=7"])


def test_every_key_is_described_in_the_schema() -> None:
    """Editors show it; the first command of all does not read the sources for it."""
    bare: list[str] = []

    def walk(part: Any, path: str) -> None:
        for name, below in (
            part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        ):
            walk(below, f"{path}.{name}")
        properties = part.get("properties", {}) if isinstance(part, dict) else {}
        bare.extend(f"{path}.{name}" for name, one in properties.items() if not one.get("description", "").strip())

    walk(schema(), "")
    assert bare == []
    assert schema()["$defs"]["Batch"]["properties"]["global"]["description"].startswith(
        "Examples of one optimiser step"
    )


def test_a_recipe_builds_the_section_of_its_own_method_only() -> None:
    """All of them take as long as the rest of the schema, and every command would wait for them."""
    code = (
        "import sys; from pathlib import Path; from mmlaunch.load import load_recipe\n"
        "from mmlaunch.recipe.objective import SECTIONS\n"
        "assert load_recipe(Path(sys.argv[1])).recipe.objective.method == 'dpo'\n"
        "print([name for name, section in SECTIONS.items() if section.__pydantic_complete__])"
    )
    command = [sys.executable, "-c", code, str(RECIPES / "dpo_llama3.yaml")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "['preference']\n"


def test_no_section_has_annotations_of_text() -> None:
    """pydantic compiles them again for each section that inherits them."""

    def sections(base: type[Section]) -> Iterator[type[Section]]:
        yield base
        for section in base.__subclasses__():
            yield from sections(section)

    shipped = [section for section in sections(Section) if section.__module__.startswith("mmlaunch.")]
    annotations = [(section, text) for section in shipped for text in vars(section).get("__annotations__", {}).values()]
    assert len(shipped) > 70 and [section for section, text in annotations if isinstance(text, str)] == []
