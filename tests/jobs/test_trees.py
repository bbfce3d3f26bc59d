"""Trees: whatever is measured in a packed row is what separate sequences without padding give, gradients and all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.jobs import judged
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.llama import modeling_llama

from mmjobs.data.batch import Batch, collate
from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.example import Answer, Example, Origin, Turn
from mmjobs.data.formats import shapes
from mmjobs.data.wants import of as wants_of
from mmjobs.model import log_probs, trees
from mmjobs.model.build import Built, build
from mmjobs.objectives import objective_of
from mmjobs.objectives.compared import Compared, Side
from mmjobs.objectives.preference import Preference
from mmjobs.objectives.terms import TERMS
from mmjobs.objectives.terms.pairs import labels
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.objective import PRESETS
from mmlaunch.recipe.terms import Margin, Terms

Recipes = Callable[..., Recipe]
WORDS = ("red", "b", "a much longer answer", "top left, I think", "no", "of course not", "3.14", "yes!")
MIXTURES: dict[str, dict[str, dict[str, Any]]] = {
    **{name: preset["terms"] for name, preset in PRESETS.items()},
    **{name: {name: {}} for name in Terms.model_fields if name != "sft"},
    "smooth": {"sigmoid": {"label_smoothing": 0.2}, "robust": {"label_smoothing": 0.1}, "aot": {"pairs": "unpaired"}},
}


@pytest.fixture(autouse=True)
def all_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' norm computes in fp32 whatever it is given; here its rounding would hide mistakes."""

    def forward(self: Any, states: torch.Tensor) -> torch.Tensor:
        variance = states.pow(2).mean(-1, keepdim=True)
        return self.weight * states * torch.rsqrt(variance + self.variance_epsilon)

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
    return recipe, built, Processor(built.chat, built.pixels, built.positions, wants=wants_of(recipe.objective))


def example(number: int, answers: list[str], image: bool) -> Example:
    drawn = shapes.example(number)
    prompt = drawn.prompt if image else (Turn("user", (f"What is {number}?",)),)
    scored = tuple(Answer(text, float(len(answers) - place)) for place, text in enumerate(answers))
    return Example(drawn.images if image else (), prompt, scored, Origin("here", number))


def encoded(processor: Processor, one: Example, spoil: int) -> Encoded:
    """With what the objective wants beside it, and a reference that says anything."""
    wants = processor.wants
    turned = (lambda image: image.rotate(90 * spoil)) if wants.spoiled and one.images else None
    found = processor.encode(one, spoil=turned, stranger="something else" if wants.stranger else None)
    generator = torch.Generator().manual_seed(spoil)
    known = [-3 * torch.rand(count, generator=generator, dtype=torch.float64) for count in found.learnt]
    return replace(found, reference=torch.cat(known))


def gradients(network: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    torch.autograd.backward(loss)
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def compare(built: Built, objective: Preference, found: list[Encoded], batches: list[Batch]) -> None:
    """The loss of these batches, together one global batch, against that of each answer on its own."""
    network, chosen = built.network, objective.settings
    shift = objective.shift
    units = {name: sum(objective.units(batch)[name] for batch in batches) for name in objective.over}
    if objective.looks_ahead:
        with torch.no_grad():
            objective.know([[objective.ahead(network, batch) for batch in batches]], 0)
    measured = [objective(network, batch) for batch in batches]
    losses = [one.losses[unit] / count for one in measured for unit, count in units.items() if count]
    ours = torch.stack(losses).sum()
    mine = gradients(network, ours)
    known = [torch.split(one.reference, one.learnt) for one in found if one.reference is not None]
    alone = [judged.Judged(network, built.pixels, *pair) for pair in zip(found, known, strict=True)]
    terms = {name: term.model_dump() for name, term in chosen.weighted.items()}
    theirs = judged.total(terms, chosen.beta, alone, shift)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    for name, gradient in gradients(network, theirs).items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.parametrize("mixture", list(MIXTURES))
def test_every_mixture_is_what_its_formula_says(models: dict[Any, Any], tiny: Recipes, mixture: str) -> None:
    objective = {"method": "preference", "terms": MIXTURES[mixture], "beta": 0.3}
    recipe, built, processor = made(models, tiny, objective, "plain", "off", "full")
    count = processor.wants.most or 3
    rows = [example(n, list(WORDS[n : n + count]), image=n != 1) for n in range(4)]
    found = [encoded(processor, row, spoil=1 + n) for n, row in enumerate(rows)]
    preference = objective_of(recipe.objective)
    assert isinstance(preference, Preference)
    preference.restore({"rewards": 3.0, "count": 10})
    batches = [collate(some, built.pixels, 258, packed=True) for some in (found[:3], found[3:])]
    compare(built, preference, found, batches)
    compare(built, preference, found, [collate(found, built.pixels, 258)])  # each answer in a padded row of its own


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_packed_trees_are_separate_sequences(models: dict[Any, Any], tiny: Recipes, data: st.DataObject) -> None:
    """K from 1 to 4, lengths of all kinds, rows without images, MMCA, activation checkpointing, LoRA."""
    mixtures = [{"sigmoid": {}, "sft": {}}, *MIXTURES.values()]
    terms = data.draw(st.sampled_from(mixtures))
    attention = data.draw(st.sampled_from(["plain", "mmca"]))
    saving, train = data.draw(st.sampled_from(["off", "on"])), data.draw(st.sampled_from(["full", "lora"]))
    objective = {"method": "preference", "terms": terms}
    recipe, built, processor = made(models, tiny, objective, attention, saving, train)
    words = st.lists(st.sampled_from(WORDS), min_size=2, max_size=processor.wants.most or 4, unique=True)
    rows = [example(n, data.draw(words), data.draw(st.booleans())) for n in range(data.draw(st.integers(1, 4)))]
    found = [encoded(processor, row, spoil=1 + n) for n, row in enumerate(rows)]
    preference = objective_of(recipe.objective)
    assert isinstance(preference, Preference)
    compare(built, preference, found, [collate(found, built.pixels, 258, packed=True)])


OPTIONS: list[dict[str, Any]] = [
    {"ld_alpha": 0.3}, {"divergence": "forward_kl"}, {"divergence": "js"}, {"wpo": True},
    {"divergence": "alpha", "divergence_alpha": 0.3}, {"reference": "none"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("term", ["sigmoid", "ipo", "hinge"])
def test_options_are_what_their_papers_say(
    models: dict[Any, Any], tiny: Recipes, term: str, options: dict[str, Any]
) -> None:
    objective = {"method": "preference", "terms": {term: {}}, "beta": 0.3, **options}
    recipe, built, processor = made(models, tiny, objective, "plain", "off", "full")
    found = [encoded(processor, example(n, list(WORDS[n : n + 2]), image=n != 1), spoil=1 + n) for n in range(3)]
    found = [replace(one, reference=0.1 * one.reference - 5.4) for one in found if one.reference is not None]  # near
    if options.get("reference") == "none":
        found = [replace(one, reference=None) for one in found]
    preference = objective_of(recipe.objective)
    measured = preference(built.network, collate(found, built.pixels, 258, packed=True))
    mine = gradients(built.network, measured.losses["examples"] / len(found))
    known = [torch.split(one.reference, one.learnt) if one.reference is not None else () for one in found]
    alone = [judged.Judged(built.network, built.pixels, *pair) for pair in zip(found, known, strict=True)]
    theirs = torch.stack([judged.with_options(term, 0.3, one, options) for one in alone]).mean()
    torch.testing.assert_close(measured.losses["examples"] / len(found), theirs, rtol=1e-9, atol=1e-10)
    for name, gradient in gradients(built.network, theirs).items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-8, atol=1e-9, msg=name)


def test_the_best_margin_of_mmpo_is_gamma_times_the_gap_of_the_scores() -> None:
    """Also for gaps of thousands, whose label is 1; a tie pushes nothing."""
    gaps = torch.tensor([0.0, 0.5, 2.0, -1.0, 4000.0], dtype=torch.float64)
    delta = (1.1 * gaps / 0.3).requires_grad_()
    side = partial(Side, *[torch.zeros(5, dtype=torch.float64)] * 4)
    one = torch.ones(5, dtype=torch.float64)
    pairs = Compared(
        0.3, side(delta, one, gaps), side(0 * one, one, 0 * gaps), side(0 * one, one, gaps),
        ratios=one[:, None], there=one[:, None] > 0, lone=one, strangers=one, paired=one > 0,
    )  # fmt: skip
    loss = TERMS["margin"](pairs, Margin(gamma=1.1))
    (slope,) = torch.autograd.grad(loss.sum(), delta)
    assert loss.isfinite().all() and slope.abs().max() < 1e-12
    assert torch.equal(labels(pairs, Margin(gamma=1.1, scores="divided by their spread")), torch.sigmoid(1.1 * gaps))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nearly_certain_tokens_have_a_gradient_in_half_precision(dtype: torch.dtype) -> None:
    """Frozen or trained, the head gives hidden states the same one: what is left of a probability near 1."""
    torch.manual_seed(0)
    weight, tokens = torch.randn(300, 64).to(dtype), torch.arange(20)
    hidden = (weight[:20] * 0.16).detach()
    wanted = hidden.double().requires_grad_()
    exact = (wanted @ weight.double().T).log_softmax(-1).gather(1, tokens[:, None]).sum()
    (truth,) = torch.autograd.grad(exact, wanted)
    assert (hidden.double() @ weight.double().T).softmax(-1).gather(1, tokens[:, None]).median() > 0.9
    for trained in (True, False):
        head = log_probs.Head(64, 300, bias=False, dtype=dtype)
        head.weight = torch.nn.Parameter(weight.clone(), requires_grad=trained)
        own = hidden.clone().requires_grad_()
        (found,) = torch.autograd.grad(head(own, tokens).values.sum(), own)
        assert (found.double() - truth).norm() < 0.03 * truth.norm()


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=4))
def test_segments_and_mask_say_the_same(shape: list[list[int]]) -> None:
    found = [(prompt + 1, *answers) for prompt, *answers in shape]
    seen = trees.mask(found)
    asks, sees, places = trees.segments(found)
    row, at = 0, 0
    for queries, keys in zip(asks, sees, strict=True):
        for query in range(queries):  # causal at the end
            expected = torch.zeros(len(seen), dtype=torch.bool)
            expected[places[at : at + keys - queries + query + 1]] = True
            assert torch.equal(seen[row], expected)
            row += 1
        at += keys
    assert row == len(seen) and at == len(places)


@pytest.mark.parametrize("trained", [True, False])
def test_logits_in_pieces_are_logits(monkeypatch: pytest.MonkeyPatch, trained: bool) -> None:
    """Also under the largest scores, and with a gradient for each token of its own."""
    monkeypatch.setattr(log_probs, "_ELEMENTS", 3 * 50)
    hidden = (100 * torch.randn(11, 8, dtype=torch.float64)).requires_grad_()
    head = log_probs.Head(8, 50, bias=False).double()
    head.weight.requires_grad_(trained)
    tokens, pull = torch.randint(50, (11,)), torch.randn(11, dtype=torch.float64)
    found = head(hidden, tokens, ("likeliest", "collision"))
    assert not len(head(hidden, tokens).collision)
    logits = (hidden @ head.weight.T).log_softmax(-1)
    torch.testing.assert_close(found.values, logits.gather(1, tokens[:, None])[:, 0])
    torch.testing.assert_close(found.collision, logits.exp().square().sum(1).log())
    assert torch.equal(found.likeliest, logits.argmax(1) == tokens)
    wanted = [hidden, head.weight] if trained else [hidden]
    ours = torch.autograd.grad((found.values * pull).sum(), wanted)
    theirs = torch.autograd.grad((logits.gather(1, tokens[:, None])[:, 0] * pull).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("trained", [True, False])
def test_no_tensor_is_as_large_as_all_logits(monkeypatch: pytest.MonkeyPatch, trained: bool) -> None:
    """Neither on the way forward nor on the way back, nor kept in between."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            for one in found if isinstance(found, (tuple, list)) else [found]:
                if isinstance(one, torch.Tensor):
                    self.size = max(self.size, one.numel())
            return found

    tokens, width, vocabulary, piece = 200, 8, 1000, 10
    monkeypatch.setattr(log_probs, "_ELEMENTS", piece * vocabulary)
    head = log_probs.Head(width, vocabulary, bias=False).requires_grad_(trained)
    hidden = torch.randn(tokens, width, requires_grad=True)
    with Largest() as largest:
        torch.autograd.backward(head(hidden, torch.randint(vocabulary, (tokens,))).values.sum())
    assert largest.size == max(piece * vocabulary, width * vocabulary) < tokens * vocabulary
