"""A recipe broken in a hundred ways: each is caught, on the right line, with what would be right."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from mmlaunch.errors import RecipeError
from mmlaunch.estimate.knowable import contradictions
from mmlaunch.load import load_recipe
from mmlaunch.load.recipe import is_pipeline
from mmlaunch.recipe import resolved
from mmlaunch.recipe.check import recipe_of
from mmlaunch.schedulers import choose

RECIPES = sorted((Path(__file__).resolve().parents[3] / "recipes").glob("*.yaml"))
SHIPPED = [path for path in RECIPES if not is_pipeline(path)]

BASE = """\
name: dpo-test
model:
  vision: openai/clip-vit-large-patch14-336
  language: meta-llama/Meta-Llama-3-8B-Instruct
  projector: mlp
  attention: plain
  tiling: {kind: dynamic, min_tiles: 1, max_tiles: 12}
  train: {vision: frozen, projector: full, language: lora}
  lora: {rank: 128, alpha: 256, dropout: 5%}
data:
  train:
    - {path: data/rlaif-v, format: rlaif_v}
    - path: data/llava.json
      format: llava
      images: data/images
      repeat: 0.5
  eval:
    - {path: data/test, format: rlaif_v, limit: 500}
  on_bad: skip
  max_tokens: 4096
objective:
  method: dpo
  beta: 0.1
optim:
  lr: 5e-6
  schedule: cosine
  warmup: 3%
  betas: [0.9, 0.95]
batch: {global: 256, micro: 4}
epochs: 1
precision: bf16
deepspeed: {stage: 2, offload: optimizer}
checkpoint: {every: 30m, keep: 3, best: eval/accuracy}
evaluate: {every: 100 steps}
resources:
  nodes: 4
  gpus_per_node: 8
  memory: 900G
  time: 24:00:00
restarts: {crash: 2, node: 10, hang: 3}
env: [WANDB_API_KEY]
seed: 1
"""

RESOURCES = BASE[BASE.index("resources:") : BASE.index("restarts:") - 1]

TILING = "{kind: dynamic, min_tiles: 1, max_tiles: 12}"

# (what is replaced, by what, what the message says); § marks the line to be named, else the first changed one
CASES = [
    # keys
    ("name: dpo-test", "nmae: dpo-test", "did you mean name?"),
    ("  vision: openai", "  vison: openai", "did you mean model.vision?"),
    ("  language: meta", "  llm: meta", "did you mean model.language?"),
    ("  lr: 5e-6", "  learning_rate: 5e-6", "did you mean optim.lr?"),
    ("  lr: 5e-6", "  lerning_rate: 5e-6", "did you mean optim.lr?"),
    ("  schedule: cosine", "  lr_scheduler_type: cosine", "did you mean optim.schedule?"),
    ("  lora: {rank: 128,", "  lora: {r: 128,", "did you mean model.lora.rank?"),
    ("global: 256, micro: 4", "batch_size: 256", "did you mean batch.global?"),
    ("  nodes: 4", "  num_nodes: 4", "did you mean resources.nodes?"),
    ("  gpus_per_node: 8", "  gpus: 8", "did you mean resources.gpus_per_node?"),
    ("seed: 1", "beta: 0.1", "did you mean objective.beta?"),
    ("seed: 1", "learning_rate: 1", "did you mean optim.lr?"),
    ("seed: 1", "wombat: 1", "known here: name, model"),
    ("seed: 1", "Seed: 1", "did you mean seed?"),
    ("      repeat: 0.5", "      repeat_time: 0.5", "did you mean data.train[1].repeat?"),
    ("  max_tokens: 4096", "  max_seq_len: 4096", "did you mean data.max_tokens?"),
    ("crash: 2", "crashes: 2", "did you mean restarts.crash?"),
    ("  beta: 0.1", "  bta: 0.1", "did you mean objective.beta?"),
    ("checkpoint: {every", "checkpoint: {save_steps", "did you mean checkpoint.every?"),
    ("deepspeed: {stage", "deepspeed: {zero_stage", "did you mean deepspeed.stage?"),
    ("evaluate: {every", "evaluate: {evry", "did you mean evaluate.every?"),
    # values from a list
    ("  method: dpo", "  method: dpoo", "did you mean dpo?"),
    ("  method: dpo", "  method: mmpoo", "did you mean mmpo?"),
    ("  method: dpo", "  method: grqo", "one of"),
    ("  schedule: cosine", "  schedule: cosin", "did you mean cosine?"),
    ("precision: bf16", "precision: bfloat16", "did you mean bf16?"),
    ("precision: bf16", "precision: 16", "one of bf16, fp16, fp32"),
    ("precision: bf16\ndeepspeed: {stage: 2, offload: optimizer}", "precision: fp16", "write deepspeed: {stage: 1}"),
    ("  projector: mlp", "  projector: mpl", "did you mean mlp?"),
    ("  projector: mlp", "  projector: resampler", "one of linear, mlp, vit, perceiver, pixel_shuffle"),
    ("  attention: plain", "  attention: mcma", "did you mean mmca?"),
    ("language: lora}", "language: qlora}", "did you mean lora?"),
    ("projector: full,", "projector: lora,", "one of frozen, full"),
    ("      format: llava", "      format: lava", "did you mean llava?"),
    ("  on_bad: skip", "  on_bad: ignore", "one of error, skip"),
    ("offload: optimizer", "offload: optimiser", "did you mean optimizer?"),
    ("{kind: dynamic", "{kind: dynamc", "did you mean dynamic?"),
    # options that would do nothing
    (TILING, "{kind: pad, max_tiles: 6}", "model.tiling.max_tiles: an image is one"),
    (TILING, "{min_tiles: 2}", "model.tiling.min_tiles: an image is one square"),
    (TILING, "{kind: crop, upscale: no}", "tiling.upscale: an image is one"),
    (TILING, "{kind: crop, thumbnail: no}", "tiling.thumbnail: an image is one"),
    ("      repeat: 0.5", "      max_tiles: 24", "model.tiling cuts at most 12 tiles"),
    ("  lr: 5e-6", "  lr: 5e-6\n  lrs: {vision: 1e-6}", "optim.lrs.vision: vision is frozen"),
    ("  lr: 5e-6", "  lr: 5e-6\n  lrs: {embeddings: 1e-6}", "optim.lrs.embeddings: embeddings is frozen"),
    ("  lr: 5e-6", "  lr: 5e-6\n  lrs: {head: 1e-6}", "optim.lrs.head: dpo has no scoring head"),
    ("format: rlaif_v, limit: 500}", "format: prompts, limit: 500}", "rows of the prompts format have no answers"),
    # numbers
    ("  lr: 5e-6", "  lr: fast", "a number is wanted"),
    ("  lr: 5e-6", "  lr: 5e-6e", "a number is wanted"),
    ("  lr: 5e-6", "  lr: .nan", "a number is wanted"),
    ("  lr: 5e-6", "  lr: nan", "not a finite number"),
    ("  lr: 5e-6", "  lr: inf", "not a finite number"),
    ("  lr: 5e-6", "  lr: 5", "out of range"),
    ("  lr: 5e-6", "  lr: 0", "out of range"),
    ("  lr: 5e-6", "  lr: -1e-5", "out of range"),
    ("  lr: 5e-6", "  lr:", "has no value"),
    ("  lr: 5e-6", "  lr: [5e-6]", "this is a list"),
    ("  beta: 0.1", "  beta: 0", "out of range"),
    ("  nodes: 4", "  nodes: 0", "at least 1"),
    ("  nodes: 4", "  nodes: 4.5", "a whole number"),
    ("  nodes: 4", "  nodes: four", "a whole number"),
    ("  gpus_per_node: 8", "  gpus_per_node: -8", "at least 0"),
    ("rank: 128,", "rank: 0,", "at least 1"),
    ("epochs: 1", "epochs: 0", "more than 0"),
    ("stage: 2,", "stage: 4,", "at most 3"),
    ("  betas: [0.9, 0.95]", "  betas: [0.9]", "at least 2"),
    ("  betas: [0.9, 0.95]", "  betas: [0.9, 1.5]", "less than 1"),
    ("  betas: [0.9, 0.95]", "  betas: 0.9, 0.95", "a list is wanted"),
    ("keep: 3", "keep: yes", "a whole number"),
    ("seed: 1", "seed: -1", "at least 0"),
    ("crash: 2", "crash: -1", "at least 0"),
    ("      repeat: 0.5", "      repeat: 0", "more than 0"),
    ("limit: 500", "limit: all", "a whole number"),
    # durations, shares, sizes
    ("  time: 24:00:00", "  time: 24", "has no unit; write 24s, 24m or 24h"),
    ("  time: 24:00:00", "  time: 24:00", "write 24:00:00"),
    ("  time: 24:00:00", "  time: 1-24", "not a duration"),
    ("  time: 24:00:00", "  time: 24:61:00", "end at 59"),
    ("  time: 24:00:00", "  time: a day", "not a duration"),
    ("  time: 24:00:00", "  time: 0s", "no time at all"),
    ("  memory: 900G", "  memory: 900", "not a memory size"),
    ("  memory: 900G", "  memory: 900 GiBs", "not a memory size"),
    ("  memory: 900G", "  memory: lots", "write 64G"),
    ("every: 30m", "every: 0", "never happen"),
    ("every: 30m", "every: sometimes", "not a duration"),
    ("  warmup: 3%", "  warmup: 300%", "not between 0 and 1"),
    ("  warmup: 3%", "  warmup: a bit", "not a warm-up"),
    ("dropout: 5%", "dropout: 5 percent", "not a share"),
    # sections
    ("batch: {global: 256, micro: 4}", "batch: 256", "a mapping is wanted"),
    (RESOURCES, "resources: [4, 8]", "a mapping is wanted"),
    ("optim:\n  lr: 5e-6", "optim:\n  lr: 5e-6\n  lrs: fast", "a mapping is wanted"),
    ("epochs: 1\n", "", "nothing says how long to train"),
    ("batch: {global: 256, micro: 4}\n", "", "batch: missing"),
    ("epochs: 1", "epochs: 1\nsteps: 100§", "both epochs and steps"),
    ("name: dpo-test", "name: my run!", "e.g. my-run"),
    ("name: dpo-test", "name: 'a\"; touch pwned; #'", "cannot be the name"),
    ("name: dpo-test", "name: ../../etc", "cannot be the name"),
    ("name: dpo-test", "name: [a]", "a text is wanted"),
    # rules over several values
    ("global: 256, micro: 4", "global: 250", "over 32 ranks (4 nodes x 8 GPUs); 224 or 256 would"),
    ("global: 256, micro: 4", "global: 16", "32 would"),
    ("global: 256, micro: 4", "global: 256, micro: 3", "1, 2, 4, 8 would"),
    ("global: 256, micro: 4", "global: 256, tokens_per_gpu: 1024", "cannot hold an example"),
    ("  gpus_per_node: 8", "  gpus_per_node: 8\n  tasks_per_node: 4§", "one rank drives one GPU"),
    ("stage: 2, offload: optimizer", "stage: 0, offload: optimizer", "stage: 1"),
    ("stage: 2, offload: optimizer", "stage: 2, offload: all", "stage: 3"),
    ("offload: optimizer", "overrides: {train_batch_size: 8}", "decided by batch.global"),
    ("language: lora}\n", "language: full}\n\n", "would do nothing"),
    ("  lora: {rank: 128, alpha: 256, dropout: 5%}\n", "", "options are missing"),
    ("projector: full, language: lora}", "projector: frozen, language: frozen}", "nothing is trained"),
    ("vision: frozen,", "vision: frozen, vision_layers: 4,", "the vision encoder is frozen"),
    ("min_tiles: 1, max_tiles: 12", "min_tiles: 9, max_tiles: 4", "more than max_tiles"),
    ("      images: data/images\n", "", "nothing says where they are"),
    ("    - {path: data/rlaif-v, format: rlaif_v}", "    - {format: rlaif_v}", "names no file"),
    ("    - {path: data/rlaif-v, format: rlaif_v}", "    - {format: shapes}", "shapes never end"),
    ("  language: meta-llama/Meta-Llama-3-8B-Instruct\n", "", "names no language model"),
    ("  projector: mlp", "  projector: {kind: mlp, queries: 64}", "only the perceiver"),
    ("  projector: mlp", "  pretrained: llava-hf/llava-1.5-7b-hf", "a whole model already"),
    ("  method: dpo\n  beta: 0.1", "  method: ppo", "ppo has no rewards"),
    ("  method: dpo\n  beta: 0.1", "  terms: {sigmoid: 0}", "no term has any weight"),
    ("  method: dpo\n  beta: 0.1", "  terms: {sigmod: 1}", "did you mean objective.terms.sigmoid?"),
    ("  method: dpo\n", "  method: dpo\n  reference_sync: {every: 10}§\n", "cannot be moved"),
    ("  method: dpo", "  method: mmpo", "the objective needs scores"),
    ("  eval:\n    - {path: data/test, format: rlaif_v, limit: 500}\n", "", "never measured"),
    ("  method: dpo\n", "  method: dpo\n  output: ../../x\n", "unknown key"),
    ("batch: {global: 256, micro: 4}", "batch: {global: 256, micro: 4, tokens_per_gpu: 8192}", "keep one of the two"),
    ("stage: 2, offload: optimizer", "overrides: {zero_optimization: {stage: 3}}", "decided by deepspeed.stage"),
    ("stage: 2, offload: optimizer", "overrides: {a: 1e999}", "not a finite number"),
    ("  method: dpo\n", "  method: bco\n  divergence: js§\n", "know no other divergence"),
    ("  method: dpo\n", "  method: aot\n  wpo: true§\n", "no pair keeps a weight"),
    ("  method: dpo\n", "  method: simpo\n  divergence: js§\n", "know no other divergence"),
    ("  method: dpo\n", "  method: simpo\n  reference: copy§\n", "has no reference"),
    ("  method: dpo\n", "  method: dpo\n  divergence_alpha: 0.3§\n", "nothing reads it"),
    ("  method: dpo\n", "  method: dpo\n  reference_stage: 3§\n", "no model of its own"),
    ("  method: dpo\n", "  method: dpo\n  reference: adapter off§\n", "what it learns in full"),
    ("  method: dpo\n", "  method: [dpo]\n", "objective"),
    ("  method: dpo\n", "  method: kto\n  reference: none§\n", "reference point"),
    ("  time: 24:00:00", "  time: " + "9" * 400 + "h", "longer than a year"),
    ("  memory: 900G", "  memory: 0G", "not a memory size"),
    ("      repeat: 0.5", "      repeat: 1e300", "at most 10000"),
    ("limit: 500", "limit: 100000000000000000000000", "at most 1000000000"),
    ("seed: 1", '"<tag>": 3', "unknown key"),
    ("seed: 1", '"<<": 3', "unknown key"),
    ("seed: 1", "time: 3h", "did you mean resources.time?"),
    ("  lr: 5e-6", "  lr: 5e-6\n  learning_rate: 3§", "did you mean optim.lr?"),
    # environment
    ("env: [WANDB_API_KEY]", "env: [PATH=/nope]", "how the job script itself runs"),
    ("env: [WANDB_API_KEY]", "env: [A=1, A=2]", "stands here twice"),
    ("env: [WANDB_API_KEY]", "env: {A: }", "has no value"),
    ("env: [WANDB_API_KEY]", "env: [DB_PASS=hunter2]", "looks like a secret"),
    ("env: [WANDB_API_KEY]", "env: [FOO=hf_abcdefghij]", "looks like a secret"),
    ("env: [WANDB_API_KEY]", "env: [WANDB_API_KEY=abc]", "looks like a secret"),
    ("env: [WANDB_API_KEY]", "env: {HF_TOKEN: abc}", "looks like a secret"),
    ("env: [WANDB_API_KEY]", "env: [RANK]", "set by mmlaunch itself"),
    ("env: [WANDB_API_KEY]", "env: ['A B']", "not the name of a variable"),
    ("env: [WANDB_API_KEY]", 'env: ["A=x\\ny"]', "newline"),
    # YAML
    ("seed: 1", "seed: 1\nseed: 2§", "stands here twice"),
    ("  lr: 5e-6", "\tlr: 5e-6", "a tab"),
    ("  lr: 5e-6", "  lr: 5e-6\n\tclip: 1§", "a tab"),
    ("  betas: [0.9, 0.95]", "  betas: [0.9, 0.95", "bracket"),
    ("name: dpo-test", 'name: "dpo-test', "never closed"),
    ("name: dpo-test", "name: a: b", "a colon where no key can stand"),
    ("name: dpo-test", "name dpo-test", "key without a colon"),
    ("seed: 1", "seed: !!python/object/apply:os.system ['touch pwned']", "is refused"),
    ("seed: 1", "seed: !ruby 1", "is refused"),
    ("seed: 1", "seed: *missing", "undefined alias"),
    ("seed: 1", "? [a, b]\n: 1", "a key must be a word"),
    ("seed: 1", "seed: 1\n---§\nname: b", "second document"),
    ("seed: 1", "extends: nowhere.yaml", "no such file"),
    ("seed: 1", "extends: {a: b}", "extends names files"),
]  # fmt: skip


def broken(old: str, new: str) -> tuple[str, int]:
    assert BASE.count(old) == 1, f"{old!r} stands {BASE.count(old)} times in the base"
    text = BASE.replace(old, new)
    if "§" in new:
        line = text[: text.index("§")].count("\n") + 1
        return text.replace("§", ""), line
    return text, BASE[: BASE.index(old)].count("\n") + 1 + (old.startswith("\n"))


def test_the_base_is_right(write: Callable[..., Path]) -> None:
    assert load_recipe(write(BASE)).recipe.objective.method == "dpo"


# What is missing has no line of its own (the section that lacks it is named); a clash may be named on its other side.
NO_LINE = {"nothing says how long to train", "batch: missing", "options are missing", "nothing says where they are",
           "names no language model", "never measured", "a whole model already", "ppo has no rewards",
           "the objective needs scores"}  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "says"), CASES, ids=[f"{i}-{says[:24]}" for i, (_, _, says) in enumerate(CASES)]
)
def test_each_mistake_is_named(write: Callable[..., Path], old: str, new: str, says: str) -> None:
    text, line = broken(old, new)
    path = write(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    fitting = [problem for problem in caught.value.problems if says in str(problem)]
    assert fitting, f"{says!r} is not in:\n{caught.value}"
    place = fitting[0].place
    match = re.fullmatch(rf"{re.escape(str(path))}:(\d+):(\d+)", place)
    assert match, place
    if says in NO_LINE:
        return
    tolerance = new.count("\n") if "§" not in new else 0
    assert line <= int(match.group(1)) <= line + tolerance, f"line {match.group(1)} instead of {line}: {fitting[0]}"
    source, caret = fitting[0].excerpt.splitlines()
    assert source.startswith(f"{match.group(1):>4} | ") and "^" in caret


def test_all_mistakes_at_once(write: Callable[..., Path]) -> None:
    text = BASE.replace("lr: 5e-6", "learning_rate: x").replace("nodes: 4", "nodes: 3").replace("seed: 1", "sed: 1")
    text = text.replace("cosine", "cosin").replace("time: 24:00:00", "time: 24")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text))
    lines = [int(problem.place.split(":")[-2]) for problem in caught.value.problems]
    assert lines == sorted(lines) and len(lines) == 6, caught.value


def test_the_caret_in_a_source_without_its_list(write: Callable[..., Path]) -> None:
    """`train: {...}` is short for a list of one: its mistakes stand where they were written."""
    text = BASE.replace("  eval:\n    - {path: data/test,", "  eval: {path: data/test,")
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            write(text.replace("limit: 500", "limit: -3").replace("rlaif_v, limit", "rlaif_v, repet: 1, limit"))
        )
    places = {problem.excerpt.splitlines()[1].find("^") - len("     | ") for problem in caught.value.problems}
    line = next(line for line in text.splitlines() if line.startswith("  eval: {path"))
    assert places == {line.index("limit"), line.index("limit") + len("repet: 1, limit: ")}


def test_a_misspelt_key_hides_nothing(write: Callable[..., Path]) -> None:
    text = BASE.replace("gpus_per_node: 8", "gpus_per_node: 8\n  task_per_node: 4")
    with pytest.raises(RecipeError, match="one rank drives one GPU"):
        load_recipe(write(text))


def test_one_mistake_does_not_make_up_another(write: Callable[..., Path]) -> None:
    for old, new in (("nodes: 4", "nodes: four"), ("epochs: 1", "epochs: one"), ("language: lora}", "language: loar}")):
        with pytest.raises(RecipeError) as caught:
            load_recipe(write(BASE.replace(old, new)))
        assert len(caught.value.problems) == 1, caught.value


HIDING = """\
name: x
model:
  language: {random: {width: 97, heads: four}}
  vision: {random: {width: 96}, feature_layer: 9}
  train: {language: lora}
data: {train: {path: a.json, format: llava, repeat: -1}}
objective: {method: ppo, kl: -1}
optim: {lr: 1e-5, warmup: 30 steps, clip: no}
batch: {global: 3, micro: two, tokens_per_gpu: 100}
steps: 10
precision: fp16
deepspeed: {stage: 0, offload: all, foo: 1}
checkpoint: {best: eval/accuracy, keep: -1}
evaluate: {every: 5 steps, samples: -3}
resources: {gpus_per_node: 0, tasks_per_node: 2, nodes: 2, time: 5x}
"""


def test_a_mistake_hides_no_rule_over_its_neighbours(write: Callable[..., Path]) -> None:
    """What does not read a mistaken value is told, at every depth; what reads one (97 over `four` heads) is not."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(HIDING))
    assert [problem.dotted for problem in caught.value.problems] == [
        "model.language.random.heads", "model.vision.feature_layer", "model.train", "data.train[0].format",
        "data.train[0].repeat", "objective", "objective.kl.weight", "optim.warmup", "optim.clip", "batch.global",
        "batch.micro", "batch.tokens_per_gpu", "precision", "precision", "precision", "deepspeed.offload",
        "deepspeed.foo", "checkpoint.best", "checkpoint.keep", "evaluate.every", "evaluate.samples", "resources.time",
    ]  # fmt: skip


def test_an_empty_section_beside_a_mistake_is_its_default(write: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(BASE.replace("seed: 1", "seed: one") + "log:\n"))
    assert [problem.dotted for problem in caught.value.problems] == ["seed"]


def leaves(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, item in enumerate(value):
            yield from leaves(item, (*path, number))
    else:
        yield path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_no_mistake_makes_up_another(path: Path) -> None:
    """Each value of a recipe that is right becomes one that no key takes: that is the only thing that is told."""
    sound = yaml.safe_load(resolved.text_of(load_recipe(path).recipe))
    for leaf in leaves(sound):
        document = copy.deepcopy(sound)
        section = document
        for part in leaf[:-1]:
            section = section[part]
        section[leaf[-1]] = [[None]]
        try:
            recipe_of(document)
        except RecipeError as error:
            for problem in error.problems:
                assert problem.path[: len(leaf)] == leaf, f"{leaf} made up {problem}"
        else:
            assert leaf[:2] == ("deepspeed", "overrides"), leaf


def test_what_reading_finds_hides_nothing_else(write: Callable[..., Path]) -> None:
    """A key that stands twice, a tag, and mistakes that only the schema knows: all at once, and in their order."""
    text = BASE.replace("beta: 0.1", "beta: 0.1\n  beta: 0.2").replace("seed: 1", "seed: !!python/name:os.system 1")
    text = text.replace("schedule: cosine", "schedule: cosin").replace("keep: 3", "kept: 3")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text))
    said = [problem.what.partition(" ")[0] for problem in caught.value.problems]
    assert said == ["this", "unknown", "unknown", "the"], caught.value


def test_other_rows_are_not_limited_as_those_of_the_base(tmp_path: Path) -> None:
    """Which rows of a data set are used says nothing about another one; how its images are found may."""
    whole = BASE.replace(
        "    - {path: data/test, format: rlaif_v, limit: 500}", "    {path: a, format: rlaif_v, limit: 5}"
    )
    (tmp_path / "old.yaml").write_text(whole)
    for over, expected in (("{path: b}", ("b", None)), ("{path: a, repeat: 2}", ("a", 5)), ("{limit: 3}", ("a", 3))):
        (tmp_path / "new.yaml").write_text(f"extends: old.yaml\ndata: {{eval: {over}}}\n")
        (source,) = load_recipe(tmp_path / "new.yaml").recipe.data.eval
        assert (source.path, source.limit, source.format) == (*expected, "rlaif_v")


def test_a_base_that_is_missing_hides_no_other(write: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"(?s)no such file: a\.yaml.*no such file: b\.yaml"):
        load_recipe(write(f"extends: [a.yaml, base/llama3_clip.yaml, b.yaml]\n{BASE}"))


def test_a_mistake_under_a_misspelt_key_keeps_its_place(write: Callable[..., Path]) -> None:
    text = BASE.replace("lr: 5e-6", "learning_rate: fast")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text))
    (line,) = [number for number, words in enumerate(text.splitlines(), 1) if "learning_rate" in words]
    places = [tuple(map(int, problem.place.split(":")[-2:])) for problem in caught.value.problems]
    assert places == [(line, 3), (line, 18)] and "a number is wanted" in str(caught.value.problems[1])
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(BASE.replace("objective:\n  method: dpo\n  beta: 0.1", "objective: {mpo}")))
    assert all(problem.path[-1] != "wpo" for problem in caught.value.problems), "nobody wrote that"


def test_settings_are_blamed_one_by_one(write: Callable[..., Path]) -> None:
    text = BASE.replace("env: [WANDB_API_KEY]", "env:\n  A: b\n  B:\n  1C: z\n  run: x\n  PYTHONUNBUFFERED: 0")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text))
    first = BASE[: BASE.index("env:")].count("\n") + 1
    lines = [int(problem.place.split(":")[-2]) - first for problem in caught.value.problems]
    assert lines == [2, 3, 4, 5], caught.value


def test_an_option_of_another_method_is_told_from_a_misspelt_one(write: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"objective\.beta: unknown key; sft has none, preference.* has"):
        load_recipe(write(BASE.replace("method: dpo", "method: sft")))


def test_as_many_mistakes_as_anybody_reads(write: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(BASE + "".join(f"k{number}: 1\n" for number in range(2000))))
    assert len(caught.value.problems) < 300 and "1,800 more mistakes" in str(caught.value)


ODD = {
    "a second, empty document": (BASE + "---\n", "second document"),
    "a character beyond the last": (BASE.replace("seed: 1", 'name: "\\UFFFFFFFF"'), "a character that there is not"),
    "half a character": (BASE.replace("name: dpo-test", 'name: "\\ud800"'), "half a character"),
    "a bell": (BASE.replace("seed: 1", "seed: \x07"), "holds a"),
    "a tag on a key": (BASE.replace("seed: 1", "!!python/name:os.system seed: 1"), "is refused"),
    "an escape": (BASE.replace("seed: 1", 'seed: "\\q"'), "an escape that YAML does not know"),
    "a NUL in extends": (f'extends: "a\\0b.yaml"\n{BASE}', "names no file"),
    "a name too long": (f"extends: {'x' * 300}.yaml\n{BASE}", " file"),  # Python 3.14 says that it is not there
    "a stranger's home": (f"extends: ~nosuchuser/x.yaml\n{BASE}", "names no file"),
    "a device": (f"extends: /dev/zero\n{BASE}", "no regular file"),
    "one beta": (BASE.replace("betas: [0.9, 0.95]", "betas: [0.9]"), "has 1 items"),
    "no time": (BASE.replace("time: 24:00:00", "time:"), "has no value"),
    "a mapping for a time": (BASE.replace("time: 24:00:00", "time: {h: 24}"), "is a mapping"),
    "too many digits": (BASE.replace("every: 100 steps", f"every: {'9' * 5000}"), "would never happen"),
    "no pattern": (BASE.replace("dropout: 5%", "targets: '*['"), "is no regular expression"),
    "two words": (BASE.replace("nodes: 4", "nodes: 4\n  partition: a b"), "cannot stand on an #SBATCH line"),
    "weights that arithmetic cannot take": (
        BASE.replace("projector: mlp", "weights: fp16"),
        "do not go with precision",
    ),
    "weights that no stage keeps": (BASE.replace("projector: mlp", "weights: fp32"), "at ZeRO stage 2"),
    "two merges": (BASE.replace("seed: 1", "seed: 1\n<<: {epochs: 1}\n<<: {epochs: 2}"), "stands here twice"),
    "not a number": (BASE.replace("offload: optimizer", "overrides: {a: .nan}"), "is not a finite number"),
}


@pytest.mark.parametrize("name", list(ODD))
def test_odd_texts_are_named_with_their_place(write: Callable[..., Path], name: str) -> None:
    text, says = ODD[name]
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text.encode("utf-8", "surrogatepass")))
    (fitting,) = [problem for problem in caught.value.problems if says in str(problem)]
    assert re.search(r":\d+:\d+$", fitting.place), fitting.place


@pytest.mark.parametrize(
    "override",
    ["data.train.\u00b2=1", f"data.train[{'9' * 5000}].limit=1", f"{'.'.join('x' * 3000)}=1", 'name="\\ud800"'],
)
def test_odd_overrides_are_mistakes(write: Callable[..., Path], override: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(write(BASE), [override])


BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 9)) for c in range(97, 105)
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"---\n", "is empty"),
        (b"- a\n- b\n", "a recipe is a mapping"),
        (b"hello\n", "a recipe is a mapping"),
        (b"name: caf\xe9\n", "is not UTF-8"),
        (b"name: a\x00b\n", "UTF-8 text"),
        (b"a: " * 10 + b"\n", "colon"),
        (b"x" * (50 << 20), "this is no recipe"),
        (b"[" * 5000, "nested too deeply"),
        (BOMB, "grows to more than"),
        (b"a: &a [*a]\n", "contains itself"),
        (b"\xff\xfen\x00a\x00m\x00e\x00", "is not UTF-8"),
    ],
)  # fmt: skip
def test_files_that_are_no_recipes(write: Callable[..., Path], content: bytes, says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)):
        load_recipe(write(content))


def test_files_that_cannot_be_read(tmp_path: Path, write: Callable[..., Path]) -> None:
    write(BASE, "there.yaml")
    with pytest.raises(RecipeError, match=r"no such file.*there\.yaml"):
        load_recipe(tmp_path / "something-else.yaml")
    with pytest.raises(RecipeError, match=r"no such file; did you mean .*/there\.yaml\?"):
        load_recipe(tmp_path / "thre.yml")
    with pytest.raises(RecipeError, match=f"there is no folder .*; did you mean {tmp_path}/there.yaml"):
        load_recipe(tmp_path.with_name(f"{tmp_path.name}s") / "thre.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match="there is no folder"):
        load_recipe(tmp_path / "no" / "such.yaml")


def test_what_would_be_waited_for_is_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(RecipeError, match="is no regular file"):
            load_recipe(path)
    with pytest.raises(RecipeError, match="is no regular file"):
        load_recipe(write("extends: pipe.yaml\n"))


def test_a_sound_key_is_not_blamed_for_a_misspelt_one(write: Callable[..., Path]) -> None:
    for old, new in (
        ("  lr: 5e-6", "  lr: 5e-6\n  learning_rate: 3"),
        ("seed: 1", "time: 3h"),
        ("epochs: 1", "Epochs: 1"),
    ):
        with pytest.raises(RecipeError) as caught:
            load_recipe(write(BASE.replace(old, new)))
        assert len(caught.value.problems) == 1, caught.value


def test_a_byte_order_mark_is_no_mistake(write: Callable[..., Path]) -> None:
    assert load_recipe(write(b"\xef\xbb\xbf" + BASE.encode())).recipe.name == "dpo-test"


def test_what_images_would_need_is_refused_without_an_encoder(write: Callable[..., Path]) -> None:
    without = BASE.replace("  vision: openai/clip-vit-large-patch14-336\n", "")
    text = without.replace("vision: frozen", "vision: full").replace("attention: plain", "attention: mmca")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text))
    told = [f"{problem.dotted}: {problem.what}" for problem in caught.value.problems]
    nothing = "there is no vision encoder, this would do nothing"
    assert {f"model.{key}: {nothing}" for key in ("tiling", "attention", "train.vision")} <= set(told)
    text_only = without.replace("  tiling: {kind: dynamic, min_tiles: 1, max_tiles: 12}\n", "")
    assert load_recipe(write(text_only)).recipe.model.vision is None


def test_tiles_of_a_source_need_tiles(write: Callable[..., Path]) -> None:
    text = BASE.replace("{kind: dynamic, min_tiles: 1, max_tiles: 12}", "pad").replace("repeat: 0.5", "max_tiles: 4")
    with pytest.raises(RecipeError, match=r"data.train\[1\].max_tiles: an image is one square .* model.tiling is pad"):
        load_recipe(write(text))


def test_what_shapes_contradict_is_told_before_anything_is_queued(write: Callable[..., Path]) -> None:
    """The files of the model are on this disk, or its name is well known."""
    rows = "train: {path: a.json, format: llava, images: data/images}\n  eval: []"
    data = BASE[BASE.index("  train:\n") : BASE.index("  on_bad")]
    text = BASE.replace(data, f"  {rows}\n").replace("evaluate: {every: 100 steps}\n", "")
    text = text.replace(", best: eval/accuracy", "")
    assert contradictions(load_recipe(write(text)).recipe) == []
    (small,) = contradictions(load_recipe(write(text), ["data.max_tokens=576"]).recipe)
    assert small.dotted == "data.max_tokens" and "an image alone has 576 tokens" in small.what
    odd = ["model.projector=pixel_shuffle", "model.vision={random: {image_size: 56, patch: 8, heads: 4}}"]
    with pytest.raises(
        RecipeError, match="pixel_shuffle needs an even number of patches a side, and the encoder has 7"
    ):
        load_recipe(write(text), odd)


def test_an_encoder_of_any_image_size_contradicts_no_length() -> None:
    """Qwen2-VL makes few tokens of a small image: 1,024 are those of a large one."""
    assert (
        contradictions(
            load_recipe(
                "recipes/grpo_qwen2vl.yaml", ["data.max_tokens=1000", "objective.sampling.max_new_tokens=64"]
            ).recipe
        )
        == []
    )


def test_a_cluster_adds_its_mistakes_to_those_of_the_recipe(write: Callable[..., Path]) -> None:
    path = write(BASE.replace("lr: 5e-6", "lr: fast").replace("attention: plain", "attention: mcma"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, also=partial(choose.misfits, "local"))
    told = [problem.dotted for problem in caught.value.problems]
    assert told == ["model.attention", "optim.lr", "resources.nodes"]
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+:\d+: resources.nodes"):
        load_recipe(write(BASE), also=partial(choose.misfits, "local"))


def test_a_shipped_recipe_that_is_misspelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"did you mean recipes/quickstart.yaml, which comes with mmlaunch\?"):
        load_recipe("recipes/quikstart.yaml")
