"""Trees: whatever is measured in a packed row is what separate sequences without padding give, gradients and all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import examples
from tests.jobs import formulas
from transformers.models.llama import modeling_llama

from mmjobs.data.batch import Batch, collate
from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.example import Answer, Example, Origin, Turn
from mmjobs.data.formats import shapes
from mmjobs.model.build import BuiltModel, build
from mmjobs.objectives import objective_of
from mmjobs.objectives.forward import answer_token_log_probs
from mmjobs.objectives.preference import Preference
from mmjobs.objectives.terms import TERMS
from mmlaunch.errors import UserError
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.preference import PRESETS
from mmlaunch.recipe.terms import BY_RATIO, SHIPPED

Recipes = Callable[..., Recipe]
WORDS = ("red", "b", "a much longer answer", "top left, I think", "no", "of course not", "3.14", "yes!")
MIXTURES: dict[str, dict[str, Any]] = {
    **{name: preset["terms"] for name, preset in PRESETS.items()},
    **{name: {name: {}} for name in SHIPPED if name != "sft"},
    "smooth": {"sigmoid": {"label_smoothing": 0.2}, "robust": {"label_smoothing": 0.1}, "aot": {"pairs": "unpaired"}},
    "smooth ranks": {"aot": {"label_smoothing": 0.2}},
    "smooth ranks, unpaired": {"aot": {"label_smoothing": 0.2, "pairs": "unpaired"}, "exo": {"label_smoothing": 0.2}},
    "all options": {
        "anchor": {"delta": 0.7, "weight": 0.5},
        "margin": {"gamma": 1.7, "scores": "divided by their spread"},
        "discopop": {"tau": 1.5},
        "simpo": {"gamma": 1.3, "weight": 2},
        "sft": 0.5,
        "kto": {"desirable": 1.5, "undesirable": 0.5},
    },
    "mdpo with sft": {"sigmoid": {}, "image_conditional": {"weight": 0.5}, "anchor": {}, "sft": 0.5},
}
SPREAD = 2.0
"""Of the score gaps, as if many more had been seen."""


@pytest.fixture(autouse=True)
def all_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' norm computes in fp32 whatever it is given; here its rounding would hide mistakes."""

    def forward(self: Any, states: torch.Tensor) -> torch.Tensor:
        variance = states.pow(2).mean(-1, keepdim=True)
        normed: torch.Tensor = self.weight * states * torch.rsqrt(variance + self.variance_epsilon)
        return normed

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", forward)


@pytest.fixture(scope="module")
def models() -> Iterator[dict[tuple[str, str, str], Any]]:
    yield {}


def made(models: dict[Any, Any], tiny: Recipes, objective: Any, attention: str, saving: str, train: str) -> Any:
    """A model in fp64 and its processor; models are kept, and what was learnt in them is nothing."""
    recipe = tiny(
        objective=objective, model__attention=attention, model__activation_checkpointing=saving,
        model__train={"vision": "full", "projector": "full", "language": train},
        **({"model__lora": {"rank": 2, "alpha": 4, "dropout": 0.0}} if train == "lora" else {}),
    )  # fmt: skip
    key = attention, saving, train
    if key not in models:
        torch.manual_seed(1)
        built = build(recipe.model)
        built.network.double().train()
        for name, parameter in built.network.named_parameters():
            if "lora_B" in name:  # as if something had been learnt
                torch.nn.init.normal_(parameter, std=0.3)
        models[key] = built
    built = models[key]
    return (
        recipe,
        built,
        Processor(built.chat, built.pixels, built.positions, requirements=recipe.objective.requirements),
    )


def example(number: int, answers: list[str], image: bool) -> Example:
    """With score gaps of 2, 1, 0 and -1."""
    drawn = shapes.example(number)
    prompt = drawn.prompt if image else (Turn("user", (f"What is {number}?",)),)
    scored = tuple(Answer(text, float((len(answers) - place) * (2 - number))) for place, text in enumerate(answers))
    return Example(drawn.images if image else (), prompt, scored, Origin("here", number))


def encoded(processor: Processor, one: Example, spoil: int, level: float = 0.0) -> Encoded:
    """With what the objective wants beside it, and a reference that says anything above a `level`."""
    requirements = processor.requirements
    turned = (lambda image: image.rotate(90 * spoil)) if requirements.corrupted and one.images else None
    found = processor.encode(one, corrupt=turned, mismatched="something else" if requirements.mismatched else None)
    generator = torch.Generator().manual_seed(spoil)
    known = [level - 3 * torch.rand(count, generator=generator, dtype=torch.float64) for count in found.loss_tokens]
    return replace(found, reference=torch.cat(known))


def gradients(network: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    torch.autograd.backward(loss)
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def judged_alone(built: BuiltModel, found: list[Encoded], options: dict[str, Any]) -> list[formulas.Judged]:
    known = [() if one.reference is None else torch.split(one.reference, list(one.loss_tokens)) for one in found]
    return [formulas.Judged(built.network, built.pixels, *pair, options) for pair in zip(found, known, strict=True)]


def compare(
    built: BuiltModel, objective: Preference, found: list[Encoded], batches: list[Batch], **options: Any
) -> list[formulas.Judged]:
    """Losses, gradients and metrics of these batches, together one global batch, against each answer on its own."""
    network, chosen, alone = built.network, objective.settings, judged_alone(built, found, options)
    units = {name: sum(objective.units(batch)[name] for batch in batches) for name in objective.over}
    if objective.needs_global_batch:
        with torch.no_grad():
            objective.set_global_batch([[objective.statistics(network, batch) for batch in batches]], 0)
    measured = [objective(network, batch) for batch in batches]
    lost = [one.losses[unit] / count for one in measured for unit, count in units.items() if count]
    ours = torch.stack(lost).sum()
    mine = gradients(network, ours)
    terms = {name: term.model_dump() for name, term in chosen.weighted.items()}
    by_term = formulas.losses(terms, chosen.beta, alone, objective.shift, SPREAD)
    theirs = formulas.total(terms, by_term, alone)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    each = torch.cat([one.example_losses for one in measured])
    torch.testing.assert_close(each, formulas.weighted(terms, by_term).detach(), rtol=1e-9, atol=1e-10)
    expected = formulas.metrics(terms, chosen.beta, alone, by_term, SPREAD)
    expected["shift"] = objective.shift * len(batches), float(len(batches))
    assert set(objective.metrics) <= expected.keys()
    for name in objective.metrics:
        pair = [sum(float(one.metrics[name][half]) for one in measured) for half in (0, 1)]
        assert pair == pytest.approx(list(expected[name]), rel=1e-9, abs=1e-10), name
    for name, gradient in gradients(network, theirs).items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-8, atol=1e-9, msg=name)
    return alone


@pytest.mark.parametrize("level", [0.0, -7.0], ids=["behind", "ahead"])
@pytest.mark.parametrize("mixture", list(MIXTURES))
def test_every_mixture_is_what_its_formula_says(
    models: dict[Any, Any], tiny: Recipes, mixture: str, level: float
) -> None:
    """Of a policy that finds the answers less likely than its reference does, and of one that finds them likelier."""
    objective = {"method": "preference", "terms": MIXTURES[mixture], "beta": 0.3}
    recipe, built, processor = made(models, tiny, objective, "plain", "off", "full")
    count = processor.requirements.most or 3
    rows = [example(n, list(WORDS[n : n + count]), image=n != 1) for n in range(4)]
    found = [encoded(processor, row, spoil=1 + n, level=level) for n, row in enumerate(rows)]
    preference = objective_of(recipe.objective, std=SPREAD)
    assert isinstance(preference, Preference)
    preference.restore({"rewards": 3.0, "count": 10})
    batches = [collate(some, built.pixels, 258, packed=True) for some in (found[:3], found[3:])]
    alone = compare(built, preference, found, batches)
    if "kto" in MIXTURES[mixture]:
        assert (formulas.point(alone) > 0) == (level < 0)
    compare(built, preference, found, [collate(found, built.pixels, 258)])  # each answer in a padded row of its own


@pytest.mark.parametrize("level", [0.0, -7.0], ids=["behind", "ahead"])
def test_single_answers_are_judged_by_their_labels(models: dict[Any, Any], tiny: Recipes, level: float) -> None:
    objective = {"method": "kto", "terms": {"kto": {"desirable": 1.5, "undesirable": 0.5}}, "beta": 0.3}
    recipe, built, processor = made(models, tiny, objective, "plain", "off", "full")
    rows = [replace(example(n, [WORDS[n]], image=n != 1), label="true" if n % 3 else "false") for n in range(4)]
    rows.append(example(4, ["both", "of them"], image=False))
    found = [encoded(processor, row, spoil=1 + n, level=level) for n, row in enumerate(rows)]
    preference = objective_of(recipe.objective)
    assert isinstance(preference, Preference)
    batches = [collate(some, built.pixels, 258, packed=True) for some in (found[:3], found[3:])]
    compare(built, preference, found, batches)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_packed_trees_are_separate_sequences(models: dict[Any, Any], tiny: Recipes, data: st.DataObject) -> None:
    """K from 1 to 4, lengths of all kinds, rows without images, MMCA, activation checkpointing, LoRA."""
    mixtures = [{"sigmoid": {}, "sft": {}}, *MIXTURES.values()]
    terms = data.draw(st.sampled_from(mixtures))
    attention = data.draw(st.sampled_from(["plain", "mmca"]))
    saving, train = data.draw(st.sampled_from(["off", "on"])), data.draw(st.sampled_from(["full", "lora"]))
    objective = {"method": "preference", "terms": terms}
    recipe, built, processor = made(models, tiny, objective, attention, saving, train)
    least, most = 1 if processor.requirements.labelled else 2, processor.requirements.most or 4
    words = st.lists(st.sampled_from(WORDS), min_size=least, max_size=most, unique=True)
    rows = [example(n, data.draw(words), data.draw(st.booleans())) for n in range(data.draw(st.integers(1, 4)))]
    rows = [replace(row, label="false" if n % 2 else "true") for n, row in enumerate(rows)]
    found = [encoded(processor, row, spoil=1 + n) for n, row in enumerate(rows)]
    preference = objective_of(recipe.objective, std=SPREAD)
    assert isinstance(preference, Preference)
    compare(built, preference, found, [collate(found, built.pixels, 258, packed=True)])


OPTIONS: list[dict[str, Any]] = [
    {"ld_alpha": 0.3}, {"divergence": "forward_kl"}, {"divergence": "js"}, {"wpo": True},
    {"divergence": "alpha", "divergence_alpha": 0.3}, {"reference": "none"},
]  # fmt: skip


def _near(reference: torch.Tensor | None, alone: formulas.Judged) -> torch.Tensor:
    """What the policy says, nearly: some divergences are exponential."""
    assert reference is not None
    return torch.cat(alone.each).detach() + 0.2 * (reference + 1.5)


def legal(term: str, options: dict[str, Any]) -> bool:
    """What the schema allows beside each other."""
    if "divergence" in options:
        return term not in BY_RATIO | {"simpo", "orpo"}
    return term not in {"wpo": {"aot", "kto", "plackett_luce"}, "reference": {"kto"}}.get(next(iter(options)), set())


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("term", sorted(TERMS))
def test_options_are_what_their_papers_say(
    models: dict[Any, Any], tiny: Recipes, term: str, options: dict[str, Any]
) -> None:
    """Beside a term over tokens, which knows of none of them."""
    objective = {"method": "preference", "terms": {term: {}, "sft": 0.5}, "beta": 0.3, **options}
    if not legal(term, options):
        with pytest.raises(UserError):
            tiny(objective=objective)
        return
    recipe, built, processor = made(models, tiny, objective, "plain", "off", "full")
    found = [encoded(processor, example(n, list(WORDS[n : n + 2]), image=n != 1), spoil=1 + n) for n in range(3)]
    found = [
        replace(one, reference=_near(one.reference, alone))
        for one, alone in zip(found, judged_alone(built, found, {}), strict=True)
    ]
    if options.get("reference") == "none":
        found = [replace(one, reference=None) for one in found]
    preference = objective_of(recipe.objective)
    assert isinstance(preference, Preference)
    compare(built, preference, found, [collate(found, built.pixels, 258, packed=True)], **options)


def test_who_is_its_reference_is_never_right(models: dict[Any, Any], tiny: Recipes) -> None:
    """A tie is no success."""
    recipe, built, processor = made(models, tiny, "mdpo", "plain", "off", "full")
    found = [encoded(processor, example(n, list(WORDS[n : n + 2]), image=True), spoil=1 + n) for n in range(3)]
    alone = judged_alone(built, found, {})
    found = [replace(one, reference=torch.cat(own.each).detach()) for one, own in zip(found, alone, strict=True)]
    batch = collate(found, built.pixels, 258, packed=True)
    said = answer_token_log_probs(built.network, batch).detach()
    measured = objective_of(recipe.objective)(built.network, replace(batch, reference=said))
    assert measured.loss.item() == pytest.approx(3 * 3 * math.log(2))
    for name in ("accuracy", "conditional_accuracy", "rewards/margin", "kl"):
        total, count = measured.metrics[name]
        assert total == 0 and count > 0
