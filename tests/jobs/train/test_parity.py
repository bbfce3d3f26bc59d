"""A model that would be trained on other numbers than its own is refused before it learns, in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from mmjobs.data.encode import Processor
from mmjobs.data.example import IMAGE, BadRow, Turn
from mmjobs.data.formats import shapes
from mmjobs.data.images.preprocess import Processed
from mmjobs.model import log_probs, trees
from mmjobs.model.build import build
from mmjobs.model.toys import models as toys
from mmjobs.model.toys import tokenizers
from mmjobs.tasks.export import export
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.model import Model
from mmlaunch.recipe.requirements import Requirements

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
PACKED = {"objective": "sft", "batch": {"global": 8, "tokens_per_gpu": 128}}
DPO = {"objective": "dpo"}
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "multiplies its scores": ("hyperclovax", {"logits_scaling": 3.0}, DPO, "apart from what HyperCLOVAXForCausalLM"),
    "forgets its positions": ("gpt_oss", {"head_dim": 8, "sliding_window": 8, **EXPERTS}, PACKED, "GptOssForCausalLM"),
    "counts its own positions": (
        "opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, PACKED, "remove batch.tokens_per_gpu",
    ),
    "carries on": (
        "qwen3_next",
        {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
         "linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"]},
        PACKED, "batch.tokens_per_gpu: some layers of this model carry on",
    ),
    "turns at a length": (
        "llama", {"rope_parameters": {**LONG, "original_max_position_embeddings": 70}}, DPO,
        "data.max_tokens: with more than 70 tokens in a batch",
    ),
    "wants a loss of its own": ("mixtral", {**EXPERTS, "output_router_logits": True}, DPO, "a loss of the router"),
    "has other rooms": ("gpt2", {"n_positions": 512}, DPO, "models of type gpt2 are laid out otherwise"),
}  # fmt: skip


def source(folder: Path) -> dict[str, Any]:
    rows = [{"prompt": f"{n}? " * (1 + n % 5), "chosen": "yes", "rejected": "oh no"} for n in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(folder / "rows.jsonl"), "format": "trl", "images": "none"}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_exact_is_refused(job: Jobs, tiny: Recipes, tmp_path: Path, case: str) -> None:
    kind, shape, changes, words = REFUSED[case]
    folder = toys.in_turns(tmp_path / kind, kind, **shape)
    data = {"train": source(tmp_path), "eval": [], "workers": 0, "max_tokens": 128}
    run = job("run")
    assert run.run(tiny(model={"pretrained": str(folder)}, data=data, **changes)) == [94], run.log()
    assert words in run.log() and not run.events("step")


def test_a_reward_model_is_proved_by_the_state_that_its_head_reads(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    """Words of another scale do not matter to it; answers that see each other do."""
    folder = toys.in_turns(tmp_path / "words", "hyperclovax", logits_scaling=3.0)
    changes = {"objective": "reward", "data": {"train": source(tmp_path), "eval": [], "workers": 0}, "steps": 1}
    assert (run := job("run")).run(tiny(model={"pretrained": str(folder)}, **changes)) == [0], run.log()
    broken = job("broken")
    broken.prepare = _opened
    folder = toys.in_turns(tmp_path / "llama", "llama")
    assert broken.run(tiny(model={"pretrained": str(folder)}, **changes)) == [94]
    assert "the last states of 4 answers are" in broken.log()


def _opened() -> None:
    """In this rank, every answer sees the ones before it."""
    patched: Any = trees  # broken on purpose
    patched._piece_by_piece = lambda module, q, k, v, row, options: patched.sdpa_attention_forward(
        module, q, k, v, None, **options
    )[0]


@pytest.mark.parametrize("kind", ["granite", "gemma2", "cohere"])
def test_scores_are_scaled_as_each_class_does_it(tmp_path: Path, kind: str) -> None:
    """A language model by itself, and the same one in a LLaVA, whose class scales nothing."""
    text: dict[str, Any] = {
        "granite": {"logits_scaling": 4.0}, "cohere": {"logit_scale": 0.25},
        "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    }[kind]  # fmt: skip
    alone = toys.in_turns(tmp_path / kind, kind, **text)
    seeing = toys.llava(tmp_path / "seeing", text={"kind": kind, **text})
    for folder in (alone, seeing):
        network: Any = build(Model.model_validate({"pretrained": str(folder)})).network.eval()
        ids = torch.arange(20, 32)[None]
        with torch.no_grad():
            hidden = network.get_submodule("model")(input_ids=ids).last_hidden_state[0]
            found = log_probs.log_probs(network, hidden, ids[0]).values
            wanted = network(input_ids=ids).logits[0].log_softmax(-1).gather(1, ids[0][:, None])[:, 0]
        torch.testing.assert_close(found, wanted)


def test_no_dropout_is_left_over_from_pretraining(tmp_path: Path) -> None:
    folder = toys.in_turns(tmp_path / "opt", "opt", ffn_dim=48, word_embed_proj_dim=32, dropout=0.5, layerdrop=0.5)
    network: Any = build(Model.model_validate({"pretrained": str(folder)})).network.train()
    first, again = (network(input_ids=torch.arange(20, 40)[None]).logits for _ in range(2))
    assert torch.equal(first, again)


def test_images_that_see_each_other_are_marked(tmp_path: Path) -> None:
    """Gemma 3's processor says which tokens are images; PaliGemma's marks the answers, which have others here."""
    made = build(Model.model_validate({"pretrained": str(toys.gemma3(tmp_path / "gemma3"))}))
    pixels = made.pixels
    assert isinstance(pixels, Processed)
    tokens, seen = pixels.blank()
    ids = torch.tensor([[20, *tokens, 21, 22], [20, 21, 22, *tokens]])
    marks = pixels.join([seen, seen], ids)["token_type_ids"]
    assert torch.equal(marks, (ids == made.network.config.image_token_id).long()) and marks.sum() == 8
    with pytest.raises(BadInput, match="its processor also makes labels, token_type_ids"):
        build(Model.model_validate({"pretrained": str(toys.paligemma(tmp_path / "paligemma"))}))


def test_mmca_stands_on_plain_attention_only(tiny: Recipes, tmp_path: Path) -> None:
    folder = toys.in_turns(tmp_path / "gemma2", "gemma2", head_dim=8, query_pre_attn_scalar=8)
    vision = {"random": {"width": 16, "layers": 2, "heads": 2, "image_size": 16, "patch": 8}}
    recipe = tiny(model={"vision": vision, "language": {"path": str(folder)}, "attention": "mmca"})
    with pytest.raises(BadInput, match=r"model.attention: mmca knows no windows .* \(gemma2\)"):
        build(recipe.model)


@pytest.mark.parametrize("padding", ["end", "none"])
def test_a_reward_model_reads_the_end_of_an_answer(job: Jobs, tiny: Recipes, tmp_path: Path, padding: str) -> None:
    """As a classifier of transformers too, whose batches are padded with what the checkpoint had for it."""
    tokenizer = tokenizers.llama2_tokenizer()
    tokenizer.chat_template = tokenizers.TURNS
    tokenizer.pad_token = tokenizer.eos_token if padding == "end" else None
    folder = toys.llama(tmp_path / "text", tokenizer)
    data = {"train": source(tmp_path), "eval": [], "workers": 0}
    run = job("run")
    assert run.run(tiny(model={"pretrained": str(folder)}, data=data, objective="reward", steps=2)) == [0], run.log()
    export(run.paths.root, tmp_path / "out")
    reads = hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    network: Any = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    texts = [f"<s>USER: Where is it? ASSISTANT:{answer}</s>" for answer in (" a", " b c d")]
    said = [reads(text, add_special_tokens=False) for text in texts]
    with torch.no_grad():
        together = network(**reads.pad(said, return_tensors="pt")).logits[:, 0]
        hidden = [network.model(torch.tensor([one["input_ids"]])).last_hidden_state[0, -1] for one in said]
        last = torch.stack([network.score(one)[0] for one in hidden])
    assert [one["input_ids"][-1] for one in said] == [reads.eos_token_id] * 2
    torch.testing.assert_close(together, last)


def test_several_images_that_are_read_otherwise_are_refused(tmp_path: Path) -> None:
    """LLaVA-OneVision makes fewer tokens of each image where there are several."""
    made = build(Model.model_validate({"pretrained": str(toys.onevision(tmp_path / "onevision"))}))
    processor = Processor(made.chat, made.pixels, 600, requirements=Requirements(most=1))
    one = shapes.example(0)
    assert processor.encode(one).prompt.ids.count(made.chat.image_id or 0) > 1
    two = replace(one, images=one.images * 2, prompt=(Turn("user", (IMAGE, IMAGE, "Which?")),))
    with pytest.raises(BadRow, match="has several images, and this model reads several images in another way"):
        processor.encode(two)


def test_examples_that_outgrow_a_row_are_told(job: Jobs, tiny: Recipes) -> None:
    run = job("run")
    changes = {"objective": "dpo", "batch": {"global": 8, "tokens_per_gpu": 34}, "data__max_tokens": 34}
    assert run.run(tiny(**changes, steps=1)) == [0], run.log()
    (told,) = run.events("warning")
    assert "training examples are longer than batch.tokens_per_gpu: their prompt and all answers" in told["what"]
