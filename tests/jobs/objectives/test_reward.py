"""Reward models: losses in closed form, what an export holds, and runs that begin where another ended."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from mmjobs.data.batch import collate
from mmjobs.data.chat import own_template
from mmjobs.data.encode import Processor
from mmjobs.data.example import Answer, Example, Origin, Turn
from mmjobs.model import tokens
from mmjobs.model.build import build
from mmjobs.model.toys import models as toys
from mmjobs.objectives.reward import Reward
from mmjobs.tasks.export import export
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.objective import Reward as Settings

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]


def by_hand(options: dict[str, Any], rewards: list[float], scores: list[float]) -> float:
    """The loss of one example, pair by pair."""
    if options.get("loss") == "regression":
        return sum((r - s) ** 2 for r, s in zip(rewards, scores, strict=True)) / len(rewards)
    found = []
    for better in range(len(rewards)):
        for worse in range(better + 1, len(rewards)):
            ahead, gap = rewards[better] - rewards[worse], scores[better] - scores[worse]
            if options.get("margin"):
                found.append(math.log1p(math.exp(-(ahead - gap))))
            else:
                p = 1 / (1 + math.exp(-options["soft_labels"] * gap))
                found.append(p * math.log1p(math.exp(-ahead)) + (1 - p) * math.log1p(math.exp(ahead)))
    return sum(found) / len(found)


@pytest.mark.parametrize("options", [{"margin": True}, {"soft_labels": 0.7}, {"loss": "regression"}])
def test_losses_with_scores_are_their_formulas(options: dict[str, Any]) -> None:
    rewards, scores = [[0.5, -1.0, 0.2], [2.0, 1.0]], [[3.0, 2.0, 0.5], [1.0, -1.0]]
    table = torch.tensor([rewards[0], [*rewards[1], 9.0]])
    data = torch.tensor([scores[0], [*scores[1], float("nan")]])
    there = torch.tensor([[True, True, True], [True, True, False]])
    found = Reward(Settings.model_validate(options))._loss(table, data, there)
    assert found.tolist() == pytest.approx([by_hand(options, *pair) for pair in zip(rewards, scores, strict=True)])


def test_a_reward_model_starts_from_sft_and_is_exported_and_taken_up(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    sft, reward, again = job("sft"), job("reward"), job("again")
    assert sft.run(tiny(steps=2)) == [0], sft.log()
    recipe = tiny(objective={"method": "reward", "centre": 0.01}, model__init_from=str(sft.paths.root), steps=3)
    assert reward.run(recipe) == [0], reward.log()
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    begun = sft.weights(2)[name]
    assert 0 < (reward.weights(3)[name] - begun).abs().max() < 0.02, "three small steps away"
    assert torch.equal(reward.weights(3)["lm_head.weight"], sft.weights(2)["lm_head.weight"]), "nothing reads it"
    assert export(reward.paths.root, tmp_path / "out") == (3, "AutoModelForImageTextToText")
    statistics = json.loads((tmp_path / "out" / "reward.json").read_text())
    measured = reward.events("evaluated")[-1]["metrics"]
    assert statistics == {"mean": measured["eval/reward"], "spread": measured["eval/reward_spread"]}
    head = load_file(tmp_path / "out" / "score.safetensors")["score.weight"]
    assert torch.equal(head, reward.weights(3)["score.weight"])
    recipe = tiny(objective="reward", model__init_from=str(tmp_path / "out"), steps=1, optim__lr=1e-9)
    assert again.run(recipe) == [0], again.log()
    torch.testing.assert_close(again.weights(1)["score.weight"], head, atol=1e-6, rtol=0)


def llama(folder: Path) -> Path:
    """A text-only model whose words are not those that it reads."""
    tokenizer = tokens.byte_tokenizer()
    tokenizer.chat_template = own_template("plain")
    tokens.complete(tokenizer)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    network = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=len(tokenizer), tie_word_embeddings=False))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [toys.gemma, llama], ids=["tied", "untied"])
def test_a_text_reward_model_is_a_classifier_of_transformers(
    job: Jobs, tiny: Recipes, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    rows = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "oh no"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, again = job("run"), job("again")
    changes = {
        "objective": "reward", "data__eval": [],
        "data__train": {"path": str(tmp_path / "rows.jsonl"), "format": "trl", "images": "none"},
    }  # fmt: skip
    folder = str(make(tmp_path / "text"))
    assert run.run(tiny(model={"pretrained": folder}, steps=2, **changes)) == [0], run.log()
    export(run.paths.root, tmp_path / "out")
    model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    score = run.weights(2)["score.weight"]
    assert torch.equal(model.score.weight, score) and model.config.num_labels == 1
    assert json.loads((tmp_path / "out" / "reward.json").read_text())["spread"] > 0
    start = {"pretrained": folder, "init_from": str(tmp_path / "out")}
    assert again.run(tiny(model=start, steps=1, optim__lr=1e-9, **changes)) == [0], again.log()
    if make is llama:
        assert not again.weights(1)["lm_head.weight"].any(), "the export has no words: not whatever was in memory"
    torch.testing.assert_close(again.weights(1)["score.weight"], score, atol=1e-6, rtol=0)
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(again.weights(1)[name], run.weights(2)[name], atol=1e-6, rtol=0)


WAYS: dict[str, dict[str, Any]] = {
    "ranked": {"centre": 0.3}, "margin": {"margin": True}, "soft labels": {"soft_labels": 0.7},
    "regression": {"loss": "regression", "centre": 0.1},
}  # fmt: skip


def told(way: str, rewards: list[torch.Tensor], scores: list[float], centre: float) -> torch.Tensor:
    """The loss of one example, best answer first."""
    pairs = [(i, j) for i in range(len(rewards)) for j in range(i + 1, len(rewards))]
    gaps = [(rewards[i] - rewards[j], scores[i] - scores[j]) for i, j in pairs]
    if way == "ranked":
        lost = [torch.stack(rewards[k:]).logsumexp(0) - rewards[k] for k in range(len(rewards))]
        found = torch.stack(lost).sum()
    elif way == "margin":
        found = torch.stack([torch.log(1 + torch.exp(gap - ahead)) for ahead, gap in gaps]).mean()
    elif way == "soft labels":
        labels = [1 / (1 + math.exp(-0.7 * gap)) for _, gap in gaps]
        each = zip(labels, gaps, strict=True)
        lost = [-p * torch.sigmoid(ahead).log() - (1 - p) * torch.sigmoid(-ahead).log() for p, (ahead, _) in each]
        found = torch.stack(lost).mean()
    else:
        found = torch.stack([(r - s) ** 2 for r, s in zip(rewards, scores, strict=True)]).mean()
    return found + centre * torch.stack(rewards).sum() ** 2


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_a_reward_is_read_after_the_last_token_and_learnt_as_its_formula_says(
    tiny: Recipes, way: str, packed: bool
) -> None:
    recipe = tiny(objective={"method": "reward", **WAYS[way]})
    torch.manual_seed(1)
    built = build(recipe.model, scoring_head=True)
    network: Any = built.network.double().eval()
    torch.nn.init.normal_(network.score.weight, std=0.5)
    processor = Processor(built.chat, built.pixels, 128, requirements=recipe.objective.requirements)
    answered = [(Answer("red", 2.0), Answer("of course", 0.5)), (Answer("a", 3.0), Answer("bc", 1.0), Answer("d", 0.0))]
    found = [
        processor.encode(Example((), (Turn("user", (f"Which {number}?",)),), answers, Origin("here", number)))
        for number, answers in enumerate(answered)
    ]
    objective = Reward(recipe.objective) if isinstance(recipe.objective, Settings) else None
    assert objective is not None
    measured = objective(network, collate(found, built.pixels, 258, packed=packed))
    rewards = []
    for one in found:
        rows = [torch.tensor([[*one.prompt.ids, *answer.ids]]) for answer in one.answers]
        rewards.append(
            [network.model(input_ids=row).last_hidden_state[0, -1] @ network.score.weight[0] for row in rows]
        )
    scores = [[answer.score or 0.0 for answer in answers] for answers in answered]
    assert isinstance(recipe.objective, Settings)
    each = [told(way, *pair, recipe.objective.centre) for pair in zip(rewards, scores, strict=True)]
    torch.testing.assert_close(measured.example_losses, torch.stack(each))
    ours, theirs = (
        torch.autograd.grad(loss, network.score.weight, retain_graph=True)[0]
        for loss in (measured.losses["examples"], torch.stack(each).sum())
    )
    torch.testing.assert_close(ours, theirs)
    flat = torch.stack([reward for some in rewards for reward in some]).detach()
    ahead = torch.stack(
        [some[i] - some[j] for some in rewards for i in range(len(some)) for j in range(i + 1, len(some))]
    ).detach()
    means = {name: float(total) / float(count) for name, (total, count) in measured.metrics.items()}
    assert means["reward"] == pytest.approx(float(flat.mean()))
    assert means["reward_squared"] == pytest.approx(float(flat.square().mean()))
    assert means["accuracy"] == pytest.approx(float((ahead > 0).double().mean()))
    assert means["margin"] == pytest.approx(float(ahead.mean()))
    objective.update({"reward": (6.0, 3.0), "reward_squared": (24.0, 3.0)})
    assert objective.state()["mean"] == 2.0 and objective.state()["spread"] == pytest.approx(2.0)
    objective.update({"reward": (0.0, 1.0), "reward_squared": (0.0, 1.0)})
    assert objective.state()["mean"] == pytest.approx(0.99 * 6 / (0.99 * 3 + 1))
