"""Configurations of TRL, LLaMA-Factory and InternVL become recipes that load, with the same values."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from tests.conftest import examples
from tests.runs import mmlaunch

from mmlaunch.errors import UserError
from mmlaunch.load import load_recipe
from mmlaunch.load.imports import internvl, llama_factory, trainer, trl
from mmlaunch.load.imports.convert import imported
from mmlaunch.load.imports.draft import To
from mmlaunch.load.imports.recipe_text import flow
from mmlaunch.load.imports.shell import command_of
from mmlaunch.load.text import parse
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.check import section_at

FILES = Path(__file__).parent / "configurations"

EXPECTED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "trl_dpo_vlm.yaml": ("TRL", "trl dpo", {
        "name": "qwen2.5-vl-3b-dpo", "model.pretrained": "Qwen/Qwen2.5-VL-3B-Instruct", "model.lora.rank": 32,
        "model.lora.alpha": 16, "model.lora.dropout": 0.05, "model.train.vision": "lora",
        "model.train.language": "lora", "objective.terms.sigmoid.weight": 0.8, "objective.terms.bco.weight": 0.2,
        "objective.terms.sft.weight": 1, "objective.beta": 0.1, "optim.lr": 5e-6, "optim.schedule": "cosine",
        "optim.warmup": "10%", "optim.betas": [0.9, 0.999], "batch.global": 512, "batch.micro": 2, "epochs": 1,
        "checkpoint.every": ["200 steps"], "checkpoint.keep": 2, "evaluate.every": "200 steps",
    }),
    "trl_grpo.yaml": ("TRL", "trl grpo", {
        "objective.method": "grpo", "objective.sampling.answers": 8, "objective.sampling.max_new_tokens": 1024,
        "objective.kl.weight": 0.001, "objective.kl.form": "k3", "objective.clip": 0.2, "objective.clip_high": 0.28,
        "objective.aggregate": "constant", "objective.advantage": "dr_grpo", "objective.rollouts": 256,
        "objective.rewards.0.function": "math", "objective.rewards.1.function": "my_lab.rewards:polite",
        "objective.rewards.1.weight": 0.5, "data.max_tokens": 1536, "steps": 500, "optim.warmup": "20 steps",
        "optim.schedule": "constant", "batch.global": 256,
    }),
    "trl_sft.json": ("TRL", "trl sft", {
        "objective.method": "sft", "optim.final_lr": 0.1, "optim.betas": [0.9, 0.95], "seed": 7, "epochs": 2,
        "deepspeed.stage": 3, "deepspeed.offload": "optimizer", "model.train.vision": "full",
        "data.max_tokens": 4096, "data.overlong": "cut", "optim.weight_decay": 0.01, "batch.global": 128,
    }),
    "trl_reward.txt": ("TRL", "trl reward", {
        "objective.method": "reward", "objective.centre": 0.01, "model.lora.rank": 32,
        "model.lora.targets": "(q_proj|v_proj)$", "optim.schedule": "linear", "optim.lr": 1e-5, "log.every": 5,
    }),
    "trl_kto.sh": ("TRL", "trl kto", {
        "objective.method": "kto", "objective.terms.kto.undesirable": 1.33, "resources.gpus_per_node": 4,
        "batch.global": 64, "data.eval.0.split": "test", "evaluate.every": "500 steps", "optim.lr": 5e-7,
    }),
    "llama_factory_dpo.yaml": ("LLaMA-Factory", "stage: dpo", {
        "objective.terms.sigmoid.weight": 1, "objective.beta": 0.1, "model.lora.rank": 8, "model.lora.alpha": 16,
        "model.chat_template": "llama-3", "data.train.0.path": "data/dpo_en_demo.json", "data.train.0.limit": 1000,
        "data.max_tokens": 2048, "optim.lr": 5e-6, "optim.warmup": "10%", "batch.global": 64, "epochs": 3,
        "checkpoint.every": ["500 steps"], "data.workers": 4,
    }),
    "llama_factory_sft_vl.yaml": ("LLaMA-Factory", "stage: sft", {
        "name": "qwen2.5-vl-full", "objective.method": "sft", "model.train.vision": "frozen",
        "model.train.projector": "full", "model.train.language": "full", "deepspeed.stage": 3,
        "deepspeed.offload": "all", "data.train.2.path": "data/alpaca_en_demo.json",
        "data.train.0.images": "data/images", "data.eval.0.path": "data/mllm_test.json", "checkpoint.best": "eval/loss",
        "checkpoint.best_is": "lowest", "model.chat_template": "processor",
    }),
    "llama_factory_simpo.sh": ("LLaMA-Factory", "stage: dpo", {
        "objective.terms.simpo.gamma": 1.25, "objective.beta": 2.5, "model.lora.dropout": 0.1,
        "model.chat_template": "vicuna", "optim.warmup": "20 steps", "data.max_tokens": 4096,
    }),
    "internvl_mpo.sh": ("InternVL", "internvl_chat_mpo.py", {
        "objective.method": "mpo", "objective.terms.bco.weight": 0.2, "objective.beta": 0.1,
        "model.pretrained": "OpenGVLab/InternVL2_5-8B", "model.train.vision": "full", "resources.nodes": 32,
        "resources.partition": "Intern5", "batch.global": 256, "batch.micro": 1, "data.train.0.format": "internvl",
        "data.max_tokens": 8192, "optim.lr": 1e-6, "optim.warmup": "3%", "optim.weight_decay": 0.05,
        "deepspeed.stage": 1, "model.activation_checkpointing": "on", "checkpoint.keep": 100,
    }),
    "internvl_sft_lora.sh": ("InternVL", "internvl_chat_finetune.py", {
        "objective.method": "sft", "model.train.language": "lora", "model.train.vision": "frozen",
        "model.train.projector": "frozen", "model.lora.rank": 16, "model.lora.alpha": 32, "model.lora.dropout": 0.05,
        "resources.gpus_per_node": 2, "batch.global": 16, "batch.micro": 4, "data.train.0.max_tiles": 6,
    }),
    "internvl_parts.json": ("InternVL", "supervised fine-tuning", {
        "model.vision.path": "openai/clip-vit-large-patch14-336", "model.projector.kind": "pixel_shuffle",
        "model.tiling.kind": "dynamic", "model.tiling.max_tiles": 6, "model.train.language": "frozen",
        "model.train.projector": "full", "optim.lr": 1e-3,
    }),
}  # fmt: skip
"""The file -> the tool, which of its configurations it is, and fields of the recipe."""


def value_at(recipe: Recipe, path: str) -> Any:
    """`objective.terms.sft.weight` of the recipe as it is written down."""
    value: Any = recipe.model_dump(mode="json", by_alias=True)
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


@pytest.fixture
def write(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_configuration_becomes_a_recipe_that_loads(name: str, write: Path) -> None:
    tool, kind, fields = EXPECTED[name]
    made = imported(FILES / name)
    assert (made.tool, made.kind, list(made.problems)) == (tool, kind, [])
    write.write_text(made.text)
    recipe = load_recipe(write).recipe
    assert {path: value_at(recipe, path) for path in fields} == fields
    assert max(map(len, made.text.partition("# Not taken over")[0].splitlines())) <= 120


def test_every_file_is_tested_and_every_tool_twice() -> None:
    tools = [tool for tool, _, _ in EXPECTED.values()]
    assert all(tools.count(tool.NAME) >= 2 for tool in (trl, llama_factory, internvl))
    assert {path.name for path in FILES.iterdir()} - EXPECTED.keys() == {"llama_factory_ppo.yaml"}


def test_what_is_not_taken_over_stays_as_a_comment_with_its_reason() -> None:
    text = imported(FILES / "trl_dpo_vlm.yaml").text
    lines = {line.split(":")[0].lstrip("# "): line for line in text.splitlines()}
    assert "import-config does not know it" in lines["my_own_flag"] and "7" in lines["my_own_flag"]
    assert "mmlaunch has its own packed attention" in lines["attn_implementation"]
    assert "callbacks" in imported(FILES / "trl_reward.txt").text.partition("# Not taken over")[2]


def test_every_argument_is_used_or_named() -> None:
    """No argument of a configuration disappears: it is a value of the recipe, or it stands in a comment."""
    text = imported(FILES / "internvl_mpo.sh").text
    command = command_of((FILES / "internvl_mpo.sh").read_text())
    assert command is not None
    for name in ("drop_path_rate", "force_image_size", "ps_version", "group_by_length", "overwrite_output_dir"):
        assert name in command.arguments and f"#   {name}: {flow(command.arguments[name])}" in text


def test_guesses_and_defaults_are_marked() -> None:
    text = imported(FILES / "llama_factory_ppo.yaml").text
    assert "schedule: cosine                      # guess: there is no schedule polynomial" in text
    assert "warmup: 0%                            # default of LLaMA-Factory" in text
    assert "# guess: nothing in the configuration says it for certain" in text.splitlines()[2]


def test_what_no_recipe_can_do_is_said() -> None:
    made = imported(FILES / "llama_factory_ppo.yaml")
    assert [(problem.dotted, problem.what) for problem in made.problems] == [
        ("precision", "two engines cannot skip the same steps")
    ]


def test_a_secret_is_not_written_down() -> None:
    text = imported(FILES / "trl_sft.json").text
    assert "hub_token: ****" in text and "hf_abc" not in text


def test_the_user_says_where_it_ran() -> None:
    made = imported(FILES / "trl_dpo_vlm.yaml", nodes=2, gpus=4)
    assert "global: 512 " in made.text and "nodes: 2" in made.text and "on how many GPUs" not in made.text


def test_data_sets_are_looked_up_in_dataset_info(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "data").mkdir()
    table = {"dpo_en_demo": {"file_name": "dpo_zh.json", "ranking": True}, "hub": {"hf_hub_url": "me/pairs"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(table))
    file = tmp_path / "examples" / "dpo.yaml"
    file.write_text((FILES / "llama_factory_dpo.yaml").read_text().replace("dpo_en_demo", "dpo_en_demo,hub,none", 1))
    text = imported(file).text
    assert "path: data/dpo_zh.json" in text and "path: data/pairs" in text
    assert "dataset_info.json does not name none" in text


def test_the_deepspeed_configuration_is_read_where_it_is(tmp_path: Path) -> None:
    zero = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": "auto"}}
    (tmp_path / "my.json").write_text(json.dumps(zero))
    shutil.copy(FILES / "internvl_mpo.sh", tmp_path / "mpo.sh")
    script = tmp_path / "mpo.sh"
    script.write_text(script.read_text().replace("zero_stage1_config.json", "my.json"))
    assert "stage: 2                              # from my.json\n  offload: optimizer\n" in imported(script).text


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.yaml",
            "compute_environment: LOCAL_MACHINE\nnum_processes: 8\n",
            "no configuration of a tool that is known",
        ),
        ("a.yaml", "- 1\n- 2\n", "a recipe is a mapping"),
        ("a.json", "[1, 2]", "a mapping of arguments is wanted"),
        ("a.json", "{'a': ", "neither JSON nor a Python mapping"),
        ("a.py", "def f(:\n", "is not Python"),
        ("a.py", "print(1)\n", "calls no DPOConfig"),
        ("a.sh", "#!/bin/bash\necho --lr 1\n", "starts no training program"),
        ("a.sh", "llamafactory-cli train examples/dpo.yaml\n", "stand in examples/dpo.yaml; name that file"),
        ("a.sh", "trl dpo --config dpo.yaml\n", "stand in dpo.yaml; name that file"),
        ("a.yaml", "dataset_name: x/y\nuse_peft: true\nmodel_name_or_path: a/b\n", "add --method with one of"),
        ("a.yaml", "stage: pt\nfinetuning_type: lora\ndataset: wiki\n", "stage: pt has no counterpart"),
        ("a.sh", "trl dpo --dataset_name x/y --lora_r 1 --per_device_train_batch_size $N\n", "'$N' is not a number"),
        ("a.yaml", "use_peft: true\nloss_type: [sigmoid, sft]\nloss_weights: [1]\n", "1 numbers for 2 losses"),
        ("a.yaml", "use_peft: true\nloss_type: [sigmoid]\nloss_weights: [one]\n", "are not numbers"),
        ("a.yaml", "dataset_name: x/y\nreward_funcs: [a, b]\nreward_weights: 1\n", "1 numbers for 2 reward functions"),
    ],
)
def test_what_cannot_be_read_is_a_clear_error(name: str, text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UserError) as error:
        imported(file)
    assert says in str(error.value) and str(file) in str(error.value)


def test_a_method_is_recognised_by_its_name_or_its_arguments(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("dataset_name: x/y\nuse_peft: true\noutput_dir: out/qwen-sft\n")
    assert imported(file).kind == "trl sft"
    assert imported(file, method="kto").kind == "trl kto"
    file.write_text("dataset_name: x/y\nreward_funcs: accuracy_reward\n")
    assert imported(file).kind == "trl grpo"


@pytest.mark.parametrize("module", [trl, llama_factory, internvl, trainer])
def test_the_tables_name_fields_that_exist(module: Any) -> None:
    for row in module.TABLE.values():
        if isinstance(row, To) and row.path and not row.path.startswith("objective."):
            *above, last = row.path.split(".")
            known = section_at(Recipe, above).keys()
            assert last in known, row.path


@pytest.mark.parametrize(
    "value", ["{zero_optimization: {stage: auto}}", "{bf16: {enabled: true}}", "{zero_optimization: 3}"]
)
def test_an_odd_deepspeed_configuration_is_a_comment(value: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"dataset_name: x/y\npacking: true\ndeepspeed: {value}\n")
    assert "#   deepspeed: {" in imported(file).text


def test_no_text_of_a_configuration_leaves_its_comment(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    evil = '"x\\nseed: 666\\n"'
    file.write_text(
        f"stage: sft\nfinetuning_type: lora\ntemplate: {evil}\ndataset: {evil}\nother: {evil}\nname: {evil}\n"
    )
    made = imported(file, 1, 1)
    assert not [line for line in made.text.splitlines() if line.startswith("seed")]


def test_the_method_is_an_option_of_trl_alone() -> None:
    with pytest.raises(UserError, match="--method: InternVL says"):
        imported(FILES / "internvl_mpo.sh", method="dpo")


KEYS = sorted({name for tool in (trl, llama_factory, internvl) for name in (*tool.TABLE, *tool.MARKS)} | {
    *trainer.TABLE, "model_name_or_path", "dataset_name", "reward_funcs", "reward_weights", "num_generations",
    "max_steps", "deepspeed", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "bf16", "fp16", "eval_steps",
    "eval_strategy", "save_steps", "gradient_accumulation_steps", "reward_model", "vision_path", "llm_path",
})  # fmt: skip
WORDS = ["", "a", "a,b", "a/b", "no", "$X", "x\ny: 1", "sigmoid", "dpo", "ppo", "lora", "cosine", "'", '"', "#", "\\"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(0, 9) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["path", "min_lr", "x"]), inner),
    max_leaves=3,
)


@hypothesis.settings(max_examples=examples(200))
@hypothesis.given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=2, max_size=20))
def test_any_configuration_is_a_recipe_or_a_mistake_of_the_user(arguments: dict[str, Any]) -> None:
    """And what is written is YAML of which the loader reads a mapping, whatever stands in the configuration."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        file.write_text(json.dumps(arguments))
        try:
            text = imported(file).text
        except UserError:
            return
    assert {"name", "model", "data", "objective", "optim", "batch"} <= parse(text, "run.yaml").plain().keys()


def test_shell_variables_and_sums() -> None:
    script = 'A=${A:-"8"}\nexport B=$((A * 2 / 3))\npython -u x/train.py --n $((B-1)) --flag --list a b'
    script += " \\\n --e=${C} | tee log\n"
    command = command_of(script)
    assert command is not None
    assert (command.program, command.arguments) == ("train.py", {"n": 4, "flag": True, "list": ["a", "b"], "e": "${C}"})


def test_the_command_line(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    printed = mmlaunch("import-config", FILES / "trl_dpo_vlm.yaml")
    done = mmlaunch("import-config", FILES / "trl_dpo_vlm.yaml", "-o", target)
    assert (
        done.returncode == 0 and "TRL (trl dpo)" in done.stderr and f"next: mmlaunch validate {target}" in done.stderr
    )
    assert target.read_text() == printed.stdout
    assert mmlaunch("validate", target).returncode == 0
    again = mmlaunch("import-config", FILES / "trl_grpo.yaml", "-o", target)
    assert again.returncode == 2 and "exists already" in again.stderr and target.read_text() == printed.stdout
