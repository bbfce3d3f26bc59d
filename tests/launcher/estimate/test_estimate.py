"""The estimate: published parameter counts, the tables of TRL's article, ZeRO, and advice that holds when followed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.runs import mmlaunch

from mmlaunch.errors import UserError
from mmlaunch.estimate import activations
from mmlaunch.estimate.advice import SIZES, fit
from mmlaunch.estimate.checkpointing import checkpointing
from mmlaunch.estimate.counts import counts, lora_sizes
from mmlaunch.estimate.memory import GIGA, estimate, states
from mmlaunch.estimate.shapes.configs import UnknownShapes
from mmlaunch.estimate.shapes.known import KNOWN
from mmlaunch.estimate.shapes.network import network_of
from mmlaunch.estimate.summary import line, short
from mmlaunch.load import load_recipe
from mmlaunch.load.cluster import Cluster, gigabytes
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.check import recipe_of
from mmlaunch.recipe.model import Lora, Model

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
IDEFICS = "HuggingFaceM4/idefics2-8b"
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def shipped(name: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", overrides).recipe


def dpo(**changes: Any) -> Recipe:
    """One GPU, one pair at a time, a pretrained Idefics2; `model__weights=x` stands for `model: {weights: x}`."""
    data: dict[str, Any] = {
        "name": "vdpo",
        "model": {"pretrained": IDEFICS, "train": {"vision": "full"}},
        "data": {"train": {"path": "d", "format": "rlaif_v"}},
        "objective": {"method": "dpo", "reference": "copy"},
        "optim": {"lr": 1e-6},
        "batch": {"global": 1},
        "steps": 1,
        "precision": "fp32",
        "resources": {"nodes": 1, "gpus_per_node": 1},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        data[section] = {**data[section], key: value} if key else value
    return recipe_of(data)


@pytest.mark.parametrize(
    ("name", "total"),
    [  # as their model cards and peft's `print_trainable_parameters` count them
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("google/gemma-2b", 2_506_172_416),
        ("google/gemma-7b", 8_537_680_896),
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("llava-hf/llava-1.5-7b-hf", 7_063_427_072),
        ("Qwen/Qwen2-VL-2B-Instruct", 2_208_985_600),
        ("Qwen/Qwen2-VL-7B-Instruct", 8_291_375_616),
        (IDEFICS, 8_458_116_848 - 55_348_736),  # printed in TRL's article, adapters included
    ],
)
def test_published_parameter_counts(name: str, total: int) -> None:
    model = Model.model_validate({"pretrained": name})
    assert counts(network_of(model), model).total == total


def test_every_well_known_name_has_shapes() -> None:
    for name in KNOWN:
        if "clip-vit" in name:
            model = Model.model_validate({"vision": name, "language": "meta-llama/Meta-Llama-3-8B"})
        else:
            model = Model.model_validate({"pretrained": name})
        assert estimate(dpo(model=model.model_dump(exclude_unset=True))).memory(False).total > 0, name


def test_adapters_of_trls_article() -> None:
    """55,348,736: rank 16 beside every linear layer but the head, which is what `all-linear` means to peft."""
    network = network_of(Model.model_validate({"pretrained": IDEFICS}))
    everywhere = frozenset(("vision", "projector", "language"))
    assert sum(size for _, size in lora_sizes(network.weights, Lora(rank=16), everywhere)) == 55_348_736


def test_the_table_of_160_gb() -> None:
    """Full training in fp32: weights, gradients and a reference of 4 bytes each, 8 for AdamW; the article takes 8 B."""
    found = states(8 * GIGA, 0, precision="fp32")
    assert (found.parameters, found.gradients, found.optimiser) == (32 * GIGA, 32 * GIGA, 64 * GIGA)
    memory = estimate(dpo()).memory(True)
    eighth = 8 * GIGA / 8_402_768_112  # the article rounds Idefics2's parameters to 8 B
    made = {name: round(size * eighth / GIGA, 1) for name, size in memory.components.items()}
    table = [made[name] for name in ("parameters", "reference", "gradients", "optimiser")]
    assert table == [32, 32, 32, 64] and sum(table) == 160


def test_the_table_of_32_6_gb() -> None:
    """LoRA: 8 B frozen weights and a reference in bf16, 16 GB each; 0.2 and 0.4 GB for gradients and AdamW of 55 M.

    The article writes "55m x 2 bytes" beside 0.2 and 0.4, which are 4 bytes each: adapters in fp32, so
    `precision: fp32` and `weights: bf16`. It leaves the adapters' own 0.2 GB of weights out.
    """
    adapters = 55_348_736
    found = states(adapters, 2 * 8 * GIGA, precision="fp32")
    frozen, own = 16 * GIGA, 4 * adapters
    assert (found.parameters, found.gradients, found.optimiser) == (frozen + own, 4 * adapters, 8 * adapters)
    table = [frozen / GIGA, frozen / GIGA, round(found.gradients / GIGA, 1), round(found.optimiser / GIGA, 1)]
    assert table == [16, 16, 0.2, 0.4] and sum(table) == pytest.approx(32.6)


def test_the_recipe_of_the_table_of_32_6_gb() -> None:
    """The same by a recipe. Its projector has no adapters, so 4.7 M of the 55 M are missing, and it is frozen here.

    DeepSpeed trains in half precision with other shares of the same 16 bytes: 2, 2 and 12 instead of 4, 4 and 8.
    """
    train = {"language": "lora", "vision": "lora", "projector": "frozen"}
    lora = {"rank": 16, "alpha": 32}
    recipe = dpo(model={"pretrained": IDEFICS, "train": train, "lora": lora}, precision="bf16")
    made, memory = estimate(recipe), estimate(recipe).memory(False)
    assert made.counts.trained == 55_348_736 - 2 * (395_264 + 3 * 653_312)  # rank 16 in the MLP and the resampler
    rounded = 8 * GIGA / 8_402_768_112
    assert memory.reference * rounded == pytest.approx(16 * GIGA)
    assert (memory.parameters - 2 * made.counts.trained) * rounded == pytest.approx(16 * GIGA)
    assert [round(size / GIGA, 1) for size in (memory.gradients, memory.optimiser)] == [0.1, 0.6]


@pytest.mark.parametrize(
    ("stage", "offload", "expected"),
    [  # 10 trained and 100 frozen numbers in bf16 on 4 ranks: 2 + 2 + 12 bytes, and 2
        (0, "none", (220, 20, 120, 0)),
        (1, "none", (220, 20, 30, 0)),
        (2, "none", (220, 5, 30, 0)),
        (3, "none", (55, 5, 30, 0)),
        (1, "optimizer", (220, 20, 0, 40)),
        (2, "optimizer", (220, 0, 0, 40)),
        (3, "all", (0, 0, 0, 95)),
    ],
)
def test_zero_and_offload(stage: int, offload: str, expected: tuple[int, ...]) -> None:
    found = states(10, 2 * 100, precision="bf16", stage=stage, offload=offload, world=4)
    assert (found.parameters, found.gradients, found.optimiser, found.host) == expected


def test_activations_of_llama_3() -> None:
    """0.2 MB for each token and layer in bf16, 6.4 MB over all: the sum that eager implementations are known for."""
    shape = network_of(Model.model_validate({"pretrained": "meta-llama/Meta-Llama-3-8B"})).language
    assert shape.layers * activations.language_layer(shape, "full", 2) == pytest.approx(6.4e6, rel=0.02)


def test_the_vocabulary_grows_by_image_and_pad() -> None:
    made = estimate(shipped("sft_llama3"))
    assert made.network.language.words == 128_320  # 128,256 and two more, in steps of 64
    qwen = Model.model_validate({"vision": "openai/clip-vit-large-patch14", "language": "Qwen/Qwen2.5-7B"})
    assert network_of(qwen).language.words == 152_064  # its spare rows suffice


def test_tokens_of_an_image() -> None:
    assert estimate(shipped("dpo_llama3")).network.tokens == 576
    tiled = shipped("dpo_llama3", "model.tiling=dynamic", "model.projector=pixel_shuffle")
    network = estimate(tiled).network
    assert (network.features, network.squares, network.tokens) == (144, 13, 1872)


def test_where_shapes_come_from(tmp_path: Path, no_cache: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
              "num_attention_heads": 4, "vocab_size": 100}  # fmt: skip
    model = Model.model_validate({"pretrained": "some/where"})
    with pytest.raises(UnknownShapes, match=r"model\.pretrained: .*hf download some/where config\.json"):
        network_of(model)
    for revision, width in (("old", 32), ("new", 64)):
        snapshot = no_cache / "models--some--where" / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps({**config, "hidden_size": width}))
    (no_cache / "models--some--where" / "refs").mkdir()
    (no_cache / "models--some--where" / "refs" / "main").write_text("old")
    assert network_of(model).language.width == 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert network_of(Model.model_validate({"pretrained": str(tmp_path)})).language.width == 64


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": "mamba"}', '{"hidden_size": "wide"}'])
def test_a_config_that_says_nothing_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UnknownShapes):
        network_of(Model.model_validate({"pretrained": str(tmp_path)}))


def test_targets_that_fit_nothing() -> None:
    for targets in ("wq", "("):
        with pytest.raises(UserError, match=r"model\.lora\.targets"):
            estimate(shipped("dpo_llama3", f"model.lora.targets={targets}"))


@pytest.mark.parametrize("name", ["dpo_llama3", "sft_llama3", "pretrain_llama3", "ppo_llama3"])
@pytest.mark.parametrize("size", SIZES)
def test_advice_holds(name: str, size: int) -> None:
    one = fit(estimate(shipped(name)), size)
    assert one.fits == (one.needs <= size * GIGA)
    if one.change:
        again = fit(estimate(shipped(name, *one.change)), size)
        assert not one.fits and again.fits


def test_advice_takes_the_cheapest_change_that_is_enough() -> None:
    made = estimate(shipped("sft_llama3", "batch.tokens_per_gpu=2048", "deepspeed.stage=0"))
    assert fit(made, 80).change == ("deepspeed.stage=1",)
    alone = shipped("sft_llama3", "resources.nodes=1", "resources.gpus_per_node=1", "deepspeed.stage=0")
    assert fit(estimate(alone), 141).change == ("model.activation_checkpointing=on",)
    assert fit(estimate(alone), 80).change == ("deepspeed.stage=2", "deepspeed.offload=optimizer")
    assert "deepspeed.stage=3" in fit(estimate(shipped("ppo_llama3")), 40).change, "frozen models are divided too"
    two = shipped("ppo_llama3", "resources.nodes=1", "resources.gpus_per_node=2")
    assert "model.train.language=lora" in fit(estimate(two), 24).change
    adapter = ["model.train={language: lora, projector: frozen}", "model.lora={rank: 64}", "deepspeed.offload=all"]
    large = shipped("dpo_llama3_70b", "resources.nodes=1", "resources.gpus_per_node=1", "deepspeed.stage=3", *adapter)
    assert fit(estimate(large), 80).fits
    plain = shipped("dpo_llama3_70b", "resources.nodes=1", "resources.gpus_per_node=1", *adapter[:2])
    assert "model.lora.quantise=nf4" in fit(estimate(plain), 80).change


def test_a_critic_may_be_kept_in_cpu_memory() -> None:
    plain, offloaded = (
        estimate(shipped("ppo_llama3", "objective.critic.stage=2", f"objective.critic.offload={where}")).memory(False)
        for where in ("none", "optimizer")
    )
    assert offloaded.optimiser < plain.optimiser and offloaded.host > plain.host == 0
    assert offloaded.parameters == plain.parameters


def test_checkpointing_is_decided_by_arithmetic() -> None:
    recipe = shipped("dpo_llama3")
    needs = estimate(recipe).memory(False).total / GIGA
    assert checkpointing(recipe, needs + 1)[0] is False
    on, reason = checkpointing(recipe, needs - 1)
    assert on and f"{needs:.0f} of {needs - 1:g} GB" in reason
    assert checkpointing(recipe) == (False, checkpointing(recipe)[1]) and "gpu_memory" in checkpointing(recipe)[1]
    for word in ("on", "off"):
        chosen = shipped("dpo_llama3", f"model.activation_checkpointing={word}")
        assert checkpointing(chosen, 1.0)[0] == (word == "on")
    assert checkpointing(shipped("quickstart"), 1e-3)[0] is False
    unknown = shipped("dpo_llama3", "model.language=nobody/nothing")
    assert checkpointing(unknown, 80.0)[0] is False


def test_checkpointing_and_short_rows_save_memory() -> None:
    made = estimate(shipped("sft_llama3"))
    less = estimate(shipped("sft_llama3", "batch.tokens_per_gpu=4096"))
    assert made.memory(True).activations < 0.2 * made.memory(False).activations
    assert less.memory(False).activations == pytest.approx(made.memory(False).activations / 2, rel=0.01)


def test_reference_and_critic() -> None:
    copy = estimate(shipped("dpo_llama3", "objective.reference=copy")).memory(False)
    assert copy.reference == 2 * 8_355_272_704 and estimate(shipped("dpo_llama3")).memory(False).reference == 0
    ppo = estimate(shipped("ppo_llama3"))
    assert ppo.memory(False).reference == 2 * copy.reference  # the reference and the reward model
    policy = states(ppo.counts.trained, 2 * ppo.counts.frozen, precision="bf16", stage=2, world=32)
    critic = states(ppo.counts.trained, 2 * ppo.counts.frozen, precision="bf16", stage=3, world=32)
    assert ppo.memory(False).parameters == policy.parameters + critic.parameters
    predict = estimate(shipped("predict_llama3")).memory(False)
    assert (predict.gradients, predict.optimiser, predict.logits) == (0, 0, 0) and predict.activations > 0


def test_the_line_of_submit() -> None:
    recipe = shipped("dpo_llama3")
    assert (line(recipe) or "").startswith(
        "8.69 B parameters, 357 M trained (LoRA 128 + projector); about 77 GB of each"
    )
    assert (line(recipe, 40.0) or "").endswith("of 40 GB, checkpointing on")
    assert line(shipped("dpo_llama3", "model.language=nobody/nothing")) is None
    assert [short(n) for n in (999, 168_000_000, 8_370_000_000, 78_400_000_000)] == ["999", "168 M", "8.37 B", "78.4 B"]


def test_memory_of_a_gpu_in_a_profile() -> None:
    assert gigabytes(Cluster()) is None and gigabytes(Cluster.model_validate({"gpu_memory": "141 GB"})) == 141
    assert gigabytes(Cluster.model_validate({"gpu_memory": "24576M"})) == pytest.approx(24.576)


def test_the_command(small: Path, write: Write) -> None:
    recipe = RECIPES / "dpo_llama3.yaml"
    plain = mmlaunch("estimate", recipe)
    assert plain.returncode == 0, plain.stderr
    for text in ("356,524,032", "reference model", "576 tokens", "40 GB", "-s model.activation_checkpointing=on"):
        assert text in plain.stdout
    profile = write("gpu_memory: 40G\n", "site.yaml")
    found = json.loads(mmlaunch("estimate", recipe, "--cluster", profile, "--json").stdout)
    assert found["checkpointing"]["on"] and found["fits"]["40"]["fits"] and found["total"] < 40 * GIGA
    assert sum(found["memory"].values()) == found["total"]
    assert found["parameters"]["language"]["trained"] == 335_544_320
    assert "fits" not in mmlaunch("estimate", small).stdout
    unknown = mmlaunch("estimate", recipe, "-s", "model.vision=nobody/nothing")
    assert unknown.returncode == 2 and "Traceback" not in unknown.stderr and "hf download" in unknown.stderr


def test_submit_says_it(small: Path) -> None:
    done = mmlaunch("submit", small, "--cluster", "local")
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout and "GB of each rank, checkpointing off" in done.stdout


def test_what_a_checkpoint_takes() -> None:
    recipe = shipped("dpo_llama3", "checkpoint.memory_every=20", "resources.nodes=2")
    made = estimate(recipe)
    assert made.saved.checkpoint == 14 * made.counts.trained and made.saved.frozen == 2 * made.counts.frozen
    assert made.saved.memory_of_node == made.saved.checkpoint, "two steps on two nodes"
    full = shipped("ppo_llama3")
    assert estimate(full).saved.checkpoint > 1.9 * 14 * estimate(full).counts.trained, "actor and critic"


def test_it_needs_no_torch() -> None:
    code = (
        "import sys, mmlaunch.cli.estimate, mmlaunch.estimate.summary\n"
        "print([m for m in ('torch', 'numpy', 'transformers', 'submitit', 'rich') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout.strip() == "[]"
