"""`objective.engine`: its short form, what is told before anything is queued, and what it changes for the ranks."""

from __future__ import annotations

import configparser
from collections.abc import Callable
from pathlib import Path

import pytest

from mmlaunch.errors import RecipeError
from mmlaunch.load import Loaded, load_recipe
from mmlaunch.recipe.engine import VLLM, Engine
from mmlaunch.recipe.resolved import read, text_of

Write = Callable[..., Loaded]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """The PPO recipe on four nodes of eight GPUs, with this engine."""

    def _write(engine: str, *overrides: str) -> Loaded:
        path = tmp_path / "recipe.yaml"
        path.write_text(f"extends: recipes/ppo_llama3.yaml\nname: own\nobjective: {{engine: {engine}}}\n")
        return load_recipe(path, ["resources.nodes=4", "batch.global=192", "objective.rollouts=192", *overrides])

    return _write


def engine_of(loaded: Loaded) -> Engine:
    engine = loaded.recipe.objective.served_by
    assert engine is not None
    return engine


def test_one_word_is_an_engine_on_the_last_node(write: Write) -> None:
    loaded = write("vllm")
    engine = engine_of(loaded)
    assert (engine.nodes, engine.servers(8), engine.timeout, engine.command) == (1, 1, 45, [])
    assert (engine.correction.kind, engine.correction.limit) == ("token_truncate", 2.0)
    assert loaded.recipe.trainers.world == 24 and loaded.recipe.resources.world == 32
    assert engine.describe(8) == "vllm: 1 server of 8 GPUs on 1 node"


def test_servers_share_the_gpus_of_their_nodes(write: Write, tmp_path: Path) -> None:
    text = "{kind: vllm, nodes: 2, gpus_per_server: 2, correction: none, options: {gpu_memory_utilization: 0.9}}"
    loaded = write(text, "batch.global=128", "objective.rollouts=128")
    engine = engine_of(loaded)
    assert engine.describe(8) == "vllm: 8 servers of 2 GPUs on 2 nodes"
    assert engine.correction.kind == "none" and engine.options == {"gpu_memory_utilization": 0.9}
    assert loaded.recipe.trainers.world == 16
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(text_of(loaded.recipe))
    assert read(resolved) == loaded.recipe


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("{kind: vllm, nodes: 4}", "objective.engine.nodes: 4 of 4 nodes serve, and none is left for training"),
        ("{kind: vllm, nodes: 0}", "the ranks use all GPUs of their nodes, and no node is left for a server"),
        ("{kind: vllm, gpus_per_server: 3}", "8 GPUs of a node do not divide into servers of 3; 1, 2, 4, 8 would"),
        ("{kind: vllm, gpus_per_server: 16}", "8 GPUs of a node do not divide into servers of 16"),
        ("{kind: vllm, options: {tensor-parallel-size: 2}}", "the run itself decides tensor_parallel_size; write gpus"),
        ("{kind: vllm, correction: {limit: 0.5}}", "objective.engine.correction.limit"),
        ("{kind: vllm, tensor_parallel_size: 2}", "did you mean objective.engine.gpus_per_server"),
        ("sglang", "objective.engine.kind"),
    ],
)
def test_mistakes_are_told_before_anything_is_queued(write: Write, engine: str, words: str) -> None:
    with pytest.raises(RecipeError) as error:
        write(engine)
    assert words in str(error.value)


def test_what_no_engine_can_serve_is_told(write: Write) -> None:
    with pytest.raises(RecipeError, match="no engine knows a model with attention: mmca; remove engine"):
        write("vllm", "model.attention=mmca")
    with pytest.raises(RecipeError, match=r"vLLM needs GPUs, and resources.gpus_per_node is 0"):
        write("vllm", "resources.gpus_per_node=0", "precision=fp32")
    with pytest.raises(RecipeError, match="200 examples do not divide over 24 ranks"):
        write("vllm", "batch.global=200", "objective.rollouts=200")


def test_the_extra_installs_what_is_accepted() -> None:
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[3] / "setup.cfg")
    low, high = (".".join(map(str, release)) for release in VLLM)
    assert config["options.extras_require"]["vllm"].strip() == f"vllm >={low},<{high}"
