"""Reinforcement learning in a recipe: what is refused because it would learn something else, and with which words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mmlaunch.recipe import Recipe, suggest
from mmlaunch.recipe.model import Model
from mmlaunch.recipe.objective import SECTIONS
from mmlaunch.recipe.reinforcement import Grpo, Ppo, Reinforcement, Rloo
from mmlaunch.recipe.sampling import Sampling

METHODS: dict[str, type[Reinforcement]] = {"ppo": Ppo, "grpo": Grpo, "rloo": Rloo}


def read(method: str, **changes: Any) -> Reinforcement:
    return METHODS[method].model_validate({"method": method, "rewards": ["exact"], **changes})


@pytest.mark.parametrize(
    ("kl", "reason"),
    [
        ({"form": "k2"}, "k2 in the reward does not have the gradient of the KL divergence"),
        ({"form": "k3"}, "k3 in the reward does not have the gradient of the KL divergence"),
        ({"weighted": True}, "only a loss is weighted by the ratio"),
        (
            {"place": "loss", "form": "k1", "weighted": False},
            "the gradient of k1 alone is 0 on average: no force at all",
        ),
        (
            {"place": "loss", "form": "k2", "weighted": True},
            "the gradient of weighted k2 is not that of the KL divergence",
        ),
        (
            {"place": "loss", "form": "k3", "weighted": False},
            r"that of the reversed divergence, KL\(reference, policy\)",
        ),
        ({"weight": 0, "target_per_sequence": 6}, "a weight of 0 stays 0 whatever its target"),
        ({"weight": 0, "place": "loss", "form": "k3"}, "a penalty of weight 0 does nothing"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_penalty_without_the_right_force_is_refused(method: str, kl: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        read(method, kl={"weight": 0.1, **kl})


@pytest.mark.parametrize(
    "kl",
    [
        {}, {"form": "k1"}, {"place": "loss"}, {"place": "loss", "form": "k1", "weighted": True},
        {"place": "loss", "form": "k2"}, {"place": "loss", "form": "k3"}, {"target_per_sequence": 6},
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", METHODS)
def test_a_penalty_with_the_right_force_is_read(method: str, kl: dict[str, Any]) -> None:
    assert read(method, kl={"weight": 0.1, **kl}).kl.used


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo", "reinforce++", "remax"])
def test_one_answer_has_no_group(advantage: str) -> None:
    """A baseline of its own group would make it 0, or leave the raw score."""
    sampling, needs_none = {"answers": 1}, advantage in ("reinforce++", "remax")
    if needs_none:
        assert read("grpo", advantage=advantage, sampling=sampling)
    else:
        with pytest.raises(ValidationError, match="one answer has no others to be compared with"):
            read("grpo", advantage=advantage, sampling=sampling)
    assert read("ppo", sampling=sampling), "the critic is its baseline"
    with pytest.raises(ValidationError, match="one answer has no others to be compared with"):
        read("rloo", sampling=sampling)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sampling": {"answers": 4, "top_p": 0.9}}, "learns from the whole distribution that answers are drawn from"),
        ({"sampling": {"answers": 4, "top_k": 50}}, "learns from the whole distribution that answers are drawn from"),
        ({"sampling": {"answers": 4, "temperature": 0}}, "temperature 0 gives one"),
        ({"sampling": {"answers": 3}, "rollouts": 128}, r"128 answers are not whole groups of sampling.answers \(3\)"),
        ({"rewards": []}, "has no rewards"),
        ({"shaping": {"no_end": "subtract"}}, "answers without an end would gain"),
        ({"shaping": {"overlong": {"margin": 512}}}, "the penalty would begin before the first of 512 tokens"),
        ({"loss": "gspo", "dual_clip": 3}, "gspo has no second clip"),
        ({"dual_clip": 1}, "greater than 1"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_mistakes(method: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        read(method, **changes)


def whole(train: dict[str, Any], lora: bool, **objective: Any) -> Recipe:
    model = {"language": {"random": {}}, "vision": {"random": {}}, "train": train}
    return Recipe.model_validate({
        "name": "rl", "model": {**model, **({"lora": {"rank": 4, "alpha": 8}} if lora else {})},
        "data": {"train": {"format": "shapes", "limit": 64}}, "optim": {"lr": 1e-5}, "steps": 4,
        "batch": {"global": 128}, "resources": {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1},
        "objective": {"method": "ppo", "rewards": ["exact"], "kl": 0.1, **objective},
    })  # fmt: skip


@pytest.mark.parametrize(
    ("train", "lora", "reason"),
    [
        ({}, False, "there is no adapter to switch off"),
        ({"language": "lora"}, True, "what it learns in full: projector"),
        ({"language": "lora", "projector": "frozen", "embeddings": True}, True, "what it learns in full: embeddings"),
    ],
)
def test_a_reference_that_moves_with_the_policy_is_refused(train: dict[str, Any], lora: bool, reason: str) -> None:
    """Without an adapter to switch off, the KL divergence would be that of the policy from itself: 0."""
    with pytest.raises(ValidationError, match=reason):
        whole(train, lora, reference="adapter off")
    adapter = {"language": "lora", "projector": "frozen"}
    assert whole(adapter, True, reference="adapter off").objective.reference_source == "adapter off"


def test_only_an_adapter_that_learns_alone_saves_the_copy() -> None:
    for train, lora, copies in (
        ({}, False, 1),
        ({"language": "lora"}, True, 1),
        ({"language": "lora", "projector": "frozen"}, True, 0),
    ):
        recipe = whole(train, lora)
        assert len(recipe.objective.frozen_stages(recipe.model.learns_adapter_alone, 2)) == copies
    text = Model.model_validate({"language": {"random": {}}, "train": {"language": "lora"}, "lora": {"rank": 4}})
    assert text.learns_adapter_alone, "a language model has no projector"


@pytest.mark.parametrize(
    ("word", "below", "right"),
    [
        ("num_generations", "", "objective.sampling.answers"),
        ("max_completion_length", "", "objective.sampling.max_new_tokens"),
        ("max_completion_length", "sampling", "objective.sampling.max_new_tokens"),
        ("n_samples_per_prompt", "", "objective.sampling.answers"),
        ("kl_coef", "", "objective.kl"),
        ("beta", "", "objective.kl"),
    ],
)
def test_the_names_of_other_libraries(word: str, below: str, right: str) -> None:
    section = Sampling if below else Grpo
    assert suggest.key(word, section, Recipe, f"objective.{below}".rstrip(".")) == f"did you mean {right}?"


def test_a_critic_shares_the_weights_of_a_reward_model_that_stays_as_it_is() -> None:
    for rewards, critic in ((["exact"], {}), (["runs/rm"], {"init_from": "policy"})):
        with pytest.raises(ValidationError, match="the critic does not start from a reward model"):
            read("ppo", rewards=rewards, critic={"shares_reward_model": True, **critic})
    shared, own = (read("ppo", rewards=["runs/rm"], critic={"shares_reward_model": on}) for on in (True, False))
    assert (shared.frozen_stages(True, 2), own.frozen_stages(True, 2)) == ([], [2])
    data: dict[str, Any] = {
        "name": "r", "model": {"language": {"random": {"width": 32}}},
        "data": {"train": {"path": "x", "format": "prompts"}},
        "objective": {"method": "ppo", "rewards": ["runs/rm"], "critic": {"shares_reward_model": True}},
        "optim": {"lr": 1e-5}, "batch": {"global": 8}, "steps": 1,
        "resources": {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1},
    }  # fmt: skip
    for model, why in (
        ({}, "it has no adapter"),
        ({"lora": {"rank": 4}, "train": {"language": "lora", "projector": "full"}}, ""),
    ):
        changed = {**data, "model": {**data["model"], "vision": {"random": {"width": 32}}, **model}}
        with pytest.raises(ValidationError, match=rf"the critic without its adapter is not the reward model: {why}"):
            Recipe.model_validate(changed)


@pytest.mark.parametrize(
    ("method", "section", "written", "left_out"),
    [
        ("predict", "sampling", {"max_new_tokens": 16}, {"temperature": 0.0, "top_k": None, "answers": 1}),
        ("evaluate", "sampling", {"answers": 4}, {"temperature": 0.0, "max_new_tokens": 512}),
        ("dropout_ntp", "sampling", {"prompts": 2}, {"temperature": 0.7, "top_k": 50, "max_new_tokens": 2048}),
        ("correctness", "sampling", {"top_p": 0.9}, {"answers": 32, "temperature": 0.7, "max_new_tokens": 4096}),
        ("grpo", "sampling", {"max_new_tokens": 64}, {"answers": 8, "temperature": 1.0}),
        ("rloo", "sampling", {"max_new_tokens": 64}, {"answers": 4}),
        ("rloo", "kl", {"place": "loss", "form": "k3"}, {"weight": 0.05}),
        ("ppo", "kl", {"target_per_sequence": 6}, {"weight": 0.05}),
    ],
)
def test_a_key_that_is_written_changes_no_other_default(
    method: str, section: str, written: dict[str, Any], left_out: dict[str, Any]
) -> None:
    """The defaults of a method stand for every key that is left out, not only for a section that is."""
    whole = {"method": method, "rewards": ["exact"]} if method in METHODS else {"method": method}
    changed = getattr(SECTIONS[method].model_validate({**whole, section: written}), section)
    assert {name: getattr(changed, name) for name in left_out} == left_out
    alone = getattr(SECTIONS[method].model_validate(whole), section)
    assert {name: getattr(alone, name) for name in left_out} == left_out, "the same as where nothing is written"
