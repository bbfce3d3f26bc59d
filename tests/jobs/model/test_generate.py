"""Generation: the same answers as transformers, whatever is generated beside them; draws that belong to the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from mmjobs.data.encode import Encoded, Processor
from mmjobs.data.example import Example, Origin, Turn
from mmjobs.data.formats import shapes
from mmjobs.model import trees
from mmjobs.model.build import BuiltModel, build
from mmjobs.model.generate import Generated, Vocabulary, all_finite, generate
from mmjobs.model.sampling import Draws, draw, truncated
from mmjobs.model.toys import models as toys
from mmjobs.model.toys import tokenizers
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.model import Model
from mmlaunch.recipe.sampling import Sampling

Tiny = Callable[..., Recipe]
WORDS = ("Hi", "What is it, and where does it stand in the picture?", "Name the colour", "Now?")


def built_with(recipe: Recipe) -> tuple[BuiltModel, Processor]:
    torch.manual_seed(3)
    built = build(recipe.model)
    built.network.double().eval()
    for parameter in built.network.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter.mul_(4)  # so that the model has preferences
    return built, Processor(built.chat, built.pixels, built.positions)


def prompts_of(processor: Processor) -> list[Encoded]:
    """Prompts of many lengths, with an image and without."""
    texts = [Example((), (Turn("user", (words,)),), (), Origin("text", row)) for row, words in enumerate(WORDS)]
    return [processor.prompt(one) for one in (shapes.example(1), *texts, shapes.example(4))]


def answers_of(
    built: BuiltModel, prompts: Sequence[Encoded], sampling: Sampling, numbers: Sequence[int], seed: int = 5
) -> list[Generated]:
    draws = [Draws(seed, prompt, number) for prompt in numbers for number in range(sampling.answers)]
    vocabulary = Vocabulary(built.network, built.chat, sampling)
    return generate(built.network, prompts, draws, vocabulary, sampling, built.pixels)


@pytest.mark.parametrize("attention", ["plain", "mmca"])
def test_the_likeliest_answers_are_those_of_transformers(tiny: Tiny, attention: str) -> None:
    built, processor = built_with(tiny(model__attention=attention))
    prompts = prompts_of(processor)
    sampling = Sampling(max_new_tokens=40, temperature=0.0, answers=2)
    vocabulary = Vocabulary(built.network, built.chat, sampling)
    answers = answers_of(built, prompts, sampling, range(len(prompts)))
    network: Any = built.network
    for number, prompt in enumerate(prompts):
        ids = torch.tensor([prompt.prompt.ids])
        images = built.pixels.join([prompt.image_inputs], ids)
        banned = [[token] for token in vocabulary.banned.nonzero()[:, 0].tolist()]
        expected = network.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False,
            eos_token_id=vocabulary.stops, bad_words_ids=banned, pad_token_id=0, **images,
        )[0, ids.shape[1] :].tolist()  # fmt: skip
        assert answers[2 * number].ids == answers[2 * number + 1].ids == expected
        assert answers[2 * number].ended == (expected[-1] in vocabulary.stops)


def test_an_answer_depends_on_its_prompt_and_its_number_alone(tiny: Tiny) -> None:
    """Not on the batch, the order in it, or how many answers its prompt has; so any world makes the same ones."""
    built, processor = built_with(tiny())
    prompts, sampling = prompts_of(processor), Sampling(max_new_tokens=30, answers=4)
    numbers = [11, 12, 13, 14, 15, 16]
    together = [one.ids for one in answers_of(built, prompts, sampling, numbers)]
    assert len({tuple(ids) for ids in together}) > len(prompts)  # drawn, and each answer for itself
    halves = [answers_of(built, prompts[at : at + 2], sampling, numbers[at : at + 2]) for at in (0, 2, 4)]
    assert [one.ids for half in halves for one in half] == together
    few = answers_of(built, prompts[::-1], Sampling(max_new_tokens=30, answers=2), numbers[::-1])
    backwards = [few[2 * place : 2 * place + 2] for place in reversed(range(6))]
    assert [one.ids for pair in backwards for one in pair] == [
        together[4 * place + number] for place in range(6) for number in range(2)
    ]
    other = answers_of(built, prompts, sampling, numbers, seed=6)
    assert [one.ids for one in other] != together


def test_log_probabilities_are_those_of_the_training_forward(tiny: Tiny) -> None:
    built, processor = built_with(tiny())
    prompts, sampling = prompts_of(processor), Sampling(max_new_tokens=25, answers=3, temperature=0.7)
    answers = answers_of(built, prompts, sampling, range(6))
    for number, prompt in enumerate(prompts):
        for answer in answers[3 * number : 3 * number + 3]:
            ids = torch.tensor([[*prompt.prompt.ids, *answer.ids]])
            images = built.pixels.join([prompt.image_inputs], ids)
            logits = built.network(input_ids=ids, **images).logits[0, len(prompt.prompt) - 1 : -1] / 0.7
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(answer.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(answer.log_probs, dtype=torch.float64), expected)


@pytest.mark.parametrize("kind", ["own", "qwen2_vl"])
def test_logits_that_are_not_finite_end_their_own_answer_alone(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    """One word's embedding is NaN: answers go on up to that word, and all others are the same."""
    if kind == "own":
        built, processor = built_with(tiny())
    else:
        built = build(Model.model_validate({"pretrained": str(toys.qwen2_vl(tmp_path))}))
        built.network.eval()
        processor = Processor(built.chat, built.pixels, built.positions)
    texts = [Example((), (Turn("user", (words,)),), (), Origin("text", row)) for row, words in enumerate(WORDS)]
    prompts = [processor.prompt(one) for one in (shapes.example(1), *texts)]
    sampling = Sampling(max_new_tokens=30, answers=3)
    before = answers_of(built, prompts, sampling, range(len(prompts)))
    drawn = [token for answer in before for token in answer.ids[:-1]]
    asked = {token for prompt in prompts for token in prompt.prompt.ids}
    others = {token for prompt in (*prompts[:2], *prompts[3:]) for token in prompt.prompt.ids}
    embeddings = cast(Any, built.network).get_input_embeddings().weight.data
    for word in (min(sorted(set(drawn) - asked), key=drawn.count), min(asked - others)):
        kept = embeddings[word].clone()
        embeddings[word] = torch.nan
        after = answers_of(built, prompts, sampling, range(len(prompts)))
        embeddings[word] = kept
        broken = 0
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            prompt = prompts[number // 3].prompt.ids
            read = [*prompt, *old.ids[:-1]]
            length = max(0, read.index(word) + 1 - len(prompt)) if word in read else len(old.ids)
            broken += word in read
            assert (new.ids, new.finite) == (old.ids[:length], word not in read)
            assert new.ended == (old.ended and new.finite)
            assert new.log_probs == pytest.approx(old.log_probs[:length], abs=1e-4)
        assert 0 < broken < len(before)
        with pytest.raises(FloatingPointError, match=r"the logits of token \d+ of an answer are not finite"):
            all_finite(after)


@pytest.mark.parametrize("kind", ["qwen2_vl", "internvl", "gemma3", "llama"])
def test_other_families_generate_too(tmp_path: Path, kind: str) -> None:
    """With transformers' own cache where attention cannot branch; the draws are ours in both."""
    more = (tokenizers.llama3_tokenizer(),) if kind == "llama" else ()
    folder = getattr(toys, kind)(tmp_path, *more)
    own = {"chat_template": "llama-3"} if kind == "llama" else {}
    built = build(Model.model_validate({"pretrained": str(folder), **own}))
    built.network.eval()
    processor = Processor(built.chat, built.pixels, built.positions)
    examples = [Example((), (Turn("user", (words,)),), (), Origin("text", 1)) for words in WORDS[:2]]
    if built.chat.image_token is not None:
        examples.append(shapes.example(1))
    prompts, sampling = [processor.prompt(one) for one in examples], Sampling(max_new_tokens=9, answers=2)
    assert (trees.kind(built.network) == trees.NAME) == (kind in ("llama", "internvl"))
    answers = answers_of(built, prompts, sampling, range(len(prompts)))
    alone = [answers_of(built, [prompt], sampling, [number]) for number, prompt in enumerate(prompts)]
    assert [one.ids for one in answers] == [one.ids for some in alone for one in some]
    banned = Vocabulary(built.network, built.chat, sampling).banned
    assert all(answer.ids and not banned[answer.ids].any() for answer in answers)


def test_a_tokenizer_may_have_more_tokens_than_the_model(tiny: Tiny) -> None:
    """As where a padding token was added and the matrices were left as they are: no row has to be banned for it."""
    built, _ = built_with(tiny())
    usual = Vocabulary(built.network, built.chat, Sampling())
    rows = len(usual.banned)
    more = [f"<more {number}>" for number in range(rows - len(built.chat.tokenizer) + 2)]
    built.chat.tokenizer.add_tokens(more, special_tokens=True)
    built.chat.tokenizer.pad_token = more[-1]
    assert built.chat.tokenizer.pad_token_id >= rows
    vocabulary = Vocabulary(built.network, built.chat, Sampling())
    assert vocabulary.stops == usual.stops and torch.equal(vocabulary.banned, usual.banned)


def test_settings_that_a_model_was_published_with_change_no_answer(tmp_path: Path) -> None:
    """Qwen2.5-VL's generation_config.json has a penalty for repetitions, which the update would know nothing of."""
    built = build(Model.model_validate({"pretrained": str(toys.qwen2_vl(tmp_path))}))
    built.network.eval()
    prompts = [Processor(built.chat, built.pixels, built.positions).prompt(shapes.example(1))]
    sampling, network = Sampling(max_new_tokens=9, answers=2), cast(Any, built.network)
    plain = answers_of(built, prompts, sampling, [1])
    network.generation_config.repetition_penalty, network.generation_config.no_repeat_ngram_size = 5.0, 1
    assert answers_of(built, prompts, sampling, [1]) == plain
    assert network.generation_config.repetition_penalty == 5.0  # for whoever loads the export


def test_a_model_without_finite_scores_is_named(tiny: Tiny) -> None:
    """No token can be drawn: an index behind the vocabulary would end a GPU's process without a reason."""
    built, processor = built_with(tiny())
    with torch.no_grad():
        cast(Any, built.network).get_output_embeddings().weight[0, 0] = torch.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(FloatingPointError, match="logits of token 1 of an answer are not finite"):
            sampling = Sampling(max_new_tokens=4, temperature=temperature)
            all_finite(answers_of(built, prompts_of(processor), sampling, range(6)))


def test_lengths_and_stops(tiny: Tiny) -> None:
    built, processor = built_with(tiny())
    prompts = prompts_of(processor)
    least = answers_of(built, prompts, Sampling(max_new_tokens=20, min_new_tokens=19, answers=8), range(6))
    assert {len(one.ids) for one in least} <= {19, 20} | {20}
    assert all(len(one.ids) == 20 for one in least)  # the one that ends comes after the 19th at the earliest
    one = answers_of(built, prompts, Sampling(max_new_tokens=1, answers=2), range(6))
    assert all(len(answer.ids) == 1 for answer in one)
    stops = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    early = answers_of(built, prompts, Sampling(max_new_tokens=60, answers=8, stop=stops), range(6))
    ended = [answer for answer in early if answer.ended]
    assert ended and all(not set(answer.ids[:-1]) & {ord(letter) for letter in stops} for answer in early)
    assert {answer.ids[-1] for answer in ended} & {ord(letter) for letter in stops}
    with pytest.raises(BadInput, match="'ab' is 2 tokens"):
        Vocabulary(built.network, built.chat, Sampling(stop=["ab"]))


def test_draws_follow_the_distribution() -> None:
    scores = torch.tensor([[1.0, 0.0, -1.0, 3.0]]).expand(4000, 4)
    streams = [Draws(0, number, 0) for number in range(4000)]
    banned = torch.tensor([False, False, False, True])
    drawn = draw(scores, [one.next() for one in streams], Sampling(temperature=2.0), banned)
    expected = (torch.tensor([1.0, 0.0, -1.0]) / 2).softmax(0)
    counts = torch.bincount(drawn.tokens, minlength=4) / 4000
    assert counts[3] == 0
    torch.testing.assert_close(counts[:3], expected, atol=0.03, rtol=0)
    whole = (scores[0] / 2).log_softmax(0)
    torch.testing.assert_close(drawn.log_probs, whole[drawn.tokens])  # over the whole vocabulary


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def kept(top_k: int | None, top_p: float) -> list[bool]:
        return list(truncated(scores, top_k, top_p).isfinite()[0].tolist())

    assert kept(2, 1.0) == [True, True, False, False]
    assert kept(None, 0.5) == [True, False, False, False]
    assert kept(None, 0.51) == [True, True, False, False]
    assert kept(None, 0.9) == [True, True, True, False]
    assert kept(3, 1e-9) == [True, False, False, False]


def test_ranks_in_lockstep_run_the_network_as_often(tiny: Tiny) -> None:
    """Each as long as any of them has an answer that goes on, also one without prompts; the answers are the same."""
    built, processor = built_with(tiny())
    prompts, sampling = prompts_of(processor), Sampling(max_new_tokens=30, answers=2, stop=["a", "b", "c", "d", "e"])
    calls: list[int] = []
    model = built.network.get_submodule("model")
    model.register_forward_pre_hook(lambda *_: calls.append(1), with_kwargs=False)
    vocabulary = Vocabulary(built.network, built.chat, sampling)
    shares = [prompts[:1], prompts[1:4], []]
    alone = []
    for number, share in enumerate(shares):
        draws = [Draws(5, 10 * number + place, answer) for place in range(len(share)) for answer in range(2)]
        alone.append(generate(built.network, share, draws, vocabulary, sampling, built.pixels) if share else [])
    longest = max(len(one.ids) for answers in alone for one in answers)
    counts = []
    for number, share in enumerate(shares):
        calls.clear()
        ticks: list[bool] = []

        def tick(running: bool, ticks: list[bool] = ticks) -> bool:
            ticks.append(running)
            return len(ticks) < longest  # what the ranks would agree on

        draws = [Draws(5, 10 * number + place, answer) for place in range(len(share)) for answer in range(2)]
        together = generate(built.network, share, draws, vocabulary, sampling, built.pixels, tick=tick, lockstep=True)
        assert [one.ids for one in together] == [one.ids for one in alone[number]]
        assert ticks[: len(ticks)].count(True) == max((len(one.ids) for one in together), default=1) - 1
        counts.append(len(calls))
    assert len(set(counts)) == 1 and counts[0] == longest
