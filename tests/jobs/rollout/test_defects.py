"""Defects of public code (reference/ppo.md, section 6) on real models; what is tested elsewhere is named here.

D1 test_learning: the_score_is_on_the_end..
D2 D4 D16 D17 D19 D22 D26 here
D3 test_advantages: what_stands_outside.., test_learning: ppo, an_answer_without_a_score..
D5 test_reinforcement: it_learns.. (kl_to_old), test_plain_ppo: two epochs, one update of each model in a step
D6 D24 D25 test_reinforcement: killed_anywhere..
D7 test_advantages: the_score_stands.., test_generate: lengths_and_stops
D8 test_reinforcement: two_ranks_are_one, test_update
D9 test_learning: scores_are_clipped..
D10 test_learning: the_penalty_of_an_answer..
D11 test_advantages: rows of three answers at once
D12 test_advantages: a_group_that_agrees.., a_group_that_nearly_agrees.., test_shaping: equal_scores..
D13 launcher/recipe/test_reinforcement: one_answer_has_no_group
D15 test_policy: a_step_lowers_the_divergence
D23 rewards/test_workers
D30 test_shaping: the_kl_weight.., test_learning: the_weight_follows..

D14 does not apply: no estimator divides by the spread of a batch. D18, D20, D21, D27, D28 and D29 are about an engine
outside of the trainer; here the model that is trained answers itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmjobs.data.batch import Batch, collate
from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.example import Example, Origin, Turn
from mmjobs.data.formats import shapes
from mmjobs.model.build import BuiltModel, build
from mmjobs.model.generate import Vocabulary, generate
from mmjobs.model.sampling import Draws, draw
from mmjobs.model.toys import models as toys
from mmjobs.model.toys import tokenizers
from mmjobs.objectives.forward import answer_log_probs
from mmjobs.objectives.policy import VALID
from mmjobs.objectives.value import RETURN, Value, values_of
from mmjobs.rollout.rollout import Group, of_groups
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.model import Model
from mmlaunch.recipe.sampling import Sampling

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
SEEING = ["llava", "qwen2_vl", "internvl"]
SHARE = """
def share(answer, truth):
    return sum(" " <= letter < "P" for letter in answer) / 6
"""


def loaded(folder: Path, scoring_head: bool = False, **more: Any) -> tuple[BuiltModel, Processor]:
    built = build(Model.model_validate({"pretrained": str(folder), **more}), "fp32", scoring_head)
    built.network.eval()
    return built, Processor(built.chat, built.pixels, built.positions)


def text(words: str) -> Example:
    return Example((), (Turn("user", (words,)),), (), Origin("text", 1))


def batch_of(built: BuiltModel, prompts: Sequence[Encoded], answers: Sequence[Sequence[int]], **values: float) -> Batch:
    """One answer to each prompt, laid out as for this model; `values` of all tokens."""
    encoded = [
        replace(
            prompt, answers=(Tokens(list(ids), [True] * len(ids)),), scores=(None,),
            token_values={name: torch.full((len(ids),), value, dtype=torch.float64) for name, value in values.items()},
        )
        for prompt, ids in zip(prompts, answers, strict=True)
    ]  # fmt: skip
    return collate(encoded, built.pixels, built.chat.tokenizer.pad_token_id, packed=built.branches)


@pytest.mark.parametrize("kind", SEEING)
def test_a_critic_of_each_architecture_learns_a_constant(tmp_path: Path, kind: str) -> None:
    """D16, and D4 beside it: an answer of one token; a prompt without an image."""
    built, processor = loaded(getattr(toys, kind)(tmp_path), scoring_head=True)
    torch.nn.init.zeros_(built.network.get_parameter("score.weight"))
    prompts = [processor.prompt(one) for one in (shapes.example(1), text("Hi"), shapes.example(2))]
    batch = batch_of(built, prompts, [[40, 41, 42], [43], [44, 45]], **{RETURN: 0.7, VALID: 1.0})
    objective = Value(None)
    assert not values_of(built.network, batch).any()
    trained = [value for value in built.network.parameters() if value.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-3)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = objective(built.network, batch).loss / objective.units(batch)["tokens"]
        loss.backward()
        assert all(bool(value.grad.isfinite().all()) for value in trained if value.grad is not None)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(0.7**2 / 2) and losses[-1] < losses[0] / 100
    words = built.network.get_output_embeddings().weight
    assert words is built.network.get_input_embeddings().weight or words.grad is None, "no word is predicted"


@pytest.mark.parametrize("kind", SEEING)
def test_an_answer_has_the_same_log_probabilities_beside_others(tmp_path: Path, kind: str) -> None:
    """D17: prompts of other lengths, with and without an image, must not move what a row sees."""
    built, processor = loaded(getattr(toys, kind)(tmp_path))
    built.network.double()
    long = text("What is it, and where does it stand in the picture?")
    prompts = [processor.prompt(one) for one in (shapes.example(1), long, shapes.example(2), text("Hi"))]
    answers = [[40, 41, 42], [43], [44, 45], [46] * 6]
    together = answer_log_probs(built.network, batch_of(built, prompts, answers)).values
    alone = [
        answer_log_probs(built.network, batch_of(built, [prompt], [ids])).values
        for prompt, ids in zip(prompts, answers, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
    blind = replace(prompts[0], image_inputs=prompts[2].image_inputs)
    other = answer_log_probs(built.network, batch_of(built, [blind], answers[:1])).values
    assert (other - alone[0]).abs().max() > 1e-4, "the image is seen"


@pytest.mark.parametrize("kind", SEEING)
def test_image_tokens_and_special_tokens_are_never_drawn(tmp_path: Path, kind: str) -> None:
    """D19: however likely they are; only what ends an answer may come."""
    built, _ = loaded(getattr(toys, kind)(tmp_path))
    tokenizer, vocabulary = built.chat.tokenizer, Vocabulary(built.network, built.chat, Sampling())
    special = {*tokenizer.all_special_ids, built.chat.image_id} - set(vocabulary.stops)
    assert len(special) > 1 and tokenizer.eos_token_id in vocabulary.stops
    for token in sorted(special - {None}):
        scores = torch.zeros(8, len(vocabulary.banned))
        scores[:, token] = 1e4
        for temperature in (0.0, 1.0):
            uniform = [number / 8 for number in range(8)]
            drawn = draw(scores, uniform, Sampling(temperature=temperature), vocabulary.banned).tokens.tolist()
            assert not special & set(drawn)


def test_the_end_is_learnt_where_it_is_the_padding_too(tmp_path: Path) -> None:
    """D2: a mask from ids would take the token away that ends an answer, and its reward with it."""
    tokenizer = tokenizers.llama3_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    built, processor = loaded(toys.llama(tmp_path, tokenizer), chat_template="llama-3")
    end = built.chat.tokenizer.pad_token_id
    sampling = Sampling(max_new_tokens=30, answers=16)
    vocabulary, prompts = (
        Vocabulary(built.network, built.chat, sampling),
        [processor.prompt(text("Hi")), processor.prompt(text("Now?"))],
    )
    assert end == built.chat.tokenizer.eos_token_id and end in vocabulary.stops
    draws = [Draws(1, prompt, number) for prompt in range(2) for number in range(16)]
    answers = generate(built.network, prompts, draws, vocabulary, sampling, built.pixels, end)
    rollout = of_groups(0, [Group(number, tuple(answers[16 * number :][:16])) for number in range(2)], 30)
    ended = rollout.ended.nonzero()[:, 0].tolist()
    assert ended and len(ended) < 32
    for packed in (True, False):
        encoded = [
            replace(
                prompts[answer // 16],
                answers=(Tokens(rollout.tokens(answer), [True] * len(rollout.tokens(answer))),),
                scores=(None,),
            )
            for answer in range(32)
        ]
        batch = collate(encoded, built.pixels, end, packed=packed)
        assert int(batch.loss_mask.sum()) == int(rollout.lengths.sum()) == int(rollout.mask.sum())
        assert int((batch.targets == end).sum()) == sum(
            rollout.ids[answer, rollout.lengths[answer] - 1] == end for answer in ended
        )


def prepared(job: Jobs, name: str) -> Any:
    run = job(name)
    file = run.paths.plugin_file("score.py")
    file.parent.mkdir(parents=True)
    file.write_text(SHARE)
    return run


def objective(method: str = "ppo", **changes: Any) -> dict[str, Any]:
    sampling = {"answers": 2, "max_new_tokens": 5, "prompts": 2}
    return {"method": method, "rewards": ["score.py:share"], "sampling": sampling, "rollouts": 8, "kl": 0.05, **changes}


def test_prompts_without_an_image_stand_beside_others_at_stage_3(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    """D22: where a rank's batch has no image, it calls the tower all the same, in generation and in the update."""
    rows = [
        {"id": n, "conversations": [{"from": "human", "value": f"Say {n}"}, {"from": "gpt", "value": "Yes"}]}
        for n in range(12)
    ]
    (tmp_path / "text.json").write_text(json.dumps(rows))
    texts = {"path": str(tmp_path / "text.json"), "format": "llava", "images": "none"}
    recipe = tiny(
        objective=objective(epochs=2), data__train=[{"format": "shapes", "limit": 5}, texts], data__eval=[texts],
        deepspeed__stage=3, resources__tasks_per_node=2, batch__global=8, batch__micro=2, steps=4, evaluate__every=3,
    )  # fmt: skip
    run = prepared(job, "run")
    assert run.run(recipe, 2) == [0, 0], run.log()
    assert len(run.events("step")) == 4 and run.events("evaluated")


def test_answers_of_one_token_to_one_prompt(job: Jobs, tiny: Recipes) -> None:
    """D4: nothing loses its dimension."""
    sampling = {"answers": 4, "max_new_tokens": 1, "prompts": 1}
    recipe = tiny(
        objective=objective(sampling=sampling, rollouts=4, bootstrap_truncated=True), batch__global=4, steps=2
    )
    run = prepared(job, "run")
    assert run.run(recipe) == [0], run.log()
    assert all(event["length"] == 1 for event in run.events("step"))


@pytest.mark.nightly
def test_memory_does_not_grow_with_rollouts(job: Jobs, tiny: Recipes) -> None:
    """D26: the images of 50 rollouts are 60 MB, and those of one 1 MB; evaluations in between forget theirs too."""
    recipe = tiny(
        objective=objective("grpo", sampling={"answers": 2, "max_new_tokens": 3, "prompts": 8}, rollouts=16),
        model__vision={"random": {"width": 16, "layers": 1, "heads": 2, "image_size": 224, "patch": 56}},
        data__train__limit=1000, batch__global=16, steps=60, evaluate__every=10,
    )  # fmt: skip
    run = prepared(job, "run")
    run.start(recipe, 1)
    assert run.wait(300) == [0], run.log()
    memory = {event["step"]: event["memory"] for event in run.events("step")}
    assert memory[60] < memory[10] + 20e6, memory
