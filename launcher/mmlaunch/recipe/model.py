"""`model`: its parts, how they are joined, and which of them are trained."""

import re
from collections.abc import Iterator
from math import isqrt
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from mmlaunch.recipe.scalars import Count, Line, Positive, Share
from mmlaunch.recipe.section import Mistake, Section, mistake, rule

CHECKPOINTING = "MMLAUNCH_CHECKPOINTING"
"""The variable that tells the ranks what the plan has decided for `activation_checkpointing: auto`."""

Projectors = Literal["linear", "mlp", "vit", "perceiver", "pixel_shuffle"]
Training = Literal["frozen", "full", "lora"]


class RandomVision(Section):
    """A CLIP encoder with random weights, for tests and for the quickstart."""

    width: Count = 96
    """The width of its hidden states."""
    layers: Count = 2
    """How many layers it has."""
    heads: Count = 4
    """Attention heads of a layer."""
    image_size: Count = 32
    """The side of the square that it reads, in pixels."""
    patch: Count = 8
    """The side of a patch, in pixels."""

    @rule
    def _heads_divide(self) -> Iterator[Mistake]:
        yield from _division("width", "heads", self.width, self.heads)

    @rule
    def _patches_divide(self) -> Iterator[Mistake]:
        yield from _division("image_size", "patch", self.image_size, self.patch)


class RandomLanguage(Section):
    """A LLaMA with random weights and a byte-level tokenizer."""

    width: Count = 96
    """The width of its hidden states."""
    layers: Count = 2
    """How many layers it has."""
    heads: Count = 4
    """Attention heads of a layer."""
    max_positions: Count = 512
    """The longest sequence, in tokens."""

    @rule
    def _heads_divide(self) -> Iterator[Mistake]:
        yield from _division("width", "heads", self.width, self.heads)


class Vision(Section):
    """The vision encoder: any CLIP vision model."""

    SHORT: ClassVar[str] = "path"

    path: Annotated[Line, Field(examples=["openai/clip-vit-large-patch14-336"])] | None = None
    """A Hugging Face name or a folder."""
    random: RandomVision | None = None
    """Random weights of this shape instead."""
    feature_layer: int = -2
    """The hidden layer that is projected: -1 is the last one, -2 (as in LLaVA) the one before it."""
    keep_class_token: bool = False
    """Whether the projector reads the class token beside the patches."""

    @rule
    def _one_source(self) -> Iterator[Mistake]:
        yield from _one_source(self.path, self.random, "openai/clip-vit-large-patch14-336")

    @rule
    def _feature_layer_exists(self) -> Iterator[Mistake]:
        layers = self.random.layers if self.random else 0
        if self.random and not -layers - 1 <= self.feature_layer <= layers:
            what = f"there is no hidden layer {self.feature_layer} of {layers}"
            right = f"write a number from {-layers - 1} to {layers}"
            yield ("feature_layer",), self.feature_layer, mistake(what, right)


class Language(Section):
    """The language model: any causal language model of LLaMA's shape."""

    SHORT: ClassVar[str] = "path"

    path: Annotated[Line, Field(examples=["meta-llama/Meta-Llama-3-8B-Instruct"])] | None = None
    """A Hugging Face name or a folder."""
    random: RandomLanguage | None = None
    """Random weights of this shape instead."""

    @rule
    def _one_source(self) -> Iterator[Mistake]:
        yield from _one_source(self.path, self.random, "meta-llama/Meta-Llama-3-8B-Instruct")


class Projector(Section):
    """What turns image features into language embeddings."""

    SHORT: ClassVar[str] = "kind"

    OTHER_NAMES: ClassVar[dict[str, str]] = {"type": "kind", "num_queries": "queries"}

    kind: Projectors = "mlp"
    """mlp is LLaVA's, pixel_shuffle InternVL's; vit begins with a layer, perceiver learns queries."""
    queries: Count | None = None
    """How many queries a perceiver learns (default 256)."""

    @rule
    def _perceiver_learns_a_square(self) -> Iterator[Mistake]:
        side = isqrt(self.queries or 0)
        if self.queries is not None and self.kind != "perceiver":
            what = f"only the perceiver learns queries, this is {self.kind}"
            yield ("queries",), self.queries, mistake(what, "remove it, or kind: perceiver")
        elif self.queries is not None and side**2 != self.queries:
            what = f"the queries stand on a square grid, and {self.queries} is no square"
            yield ("queries",), self.queries, mistake(what, f"write {side**2} or {(side + 1) ** 2}")


class Tiling(Section):
    """How an image becomes one or more squares."""

    SHORT: ClassVar[str] = "kind"

    OTHER_NAMES: ClassVar[dict[str, str]] = {"max_dynamic_patch": "max_tiles", "min_dynamic_patch": "min_tiles"}

    kind: Literal["encoder", "resize", "crop", "pad", "dynamic"] = "encoder"
    """encoder: what the vision encoder's own preprocessing does, which for CLIP is crop.

    resize squeezes the image into one square, crop cuts the middle out, pad adds ground (LLaVA); dynamic is InternVL's
    tiling, in several squares.
    """
    min_tiles: Count = 1
    """The fewest tiles of an image, without the thumbnail; for dynamic tiling."""
    max_tiles: Count = 12
    """The most tiles of an image, without the thumbnail; several images of a conversation share them."""
    thumbnail: bool = True
    """Append the whole image when there is more than one tile."""
    upscale: bool = True
    """InternVL enlarges small images to fill their tiles; false never does."""
    max_side: Count = 4096
    """Larger images are reduced to this side first."""

    @rule
    def _only_dynamic_has_tiles(self) -> Iterator[Mistake]:
        if self.kind == "dynamic":
            return
        for key in ("min_tiles", "max_tiles", "thumbnail", "upscale"):
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                what = f"an image is one square where the kind of tiling is {self.kind}, this would do nothing"
                yield (key,), value, mistake(what, f"write kind: dynamic, or remove {key}")

    @rule
    def _least_before_most(self) -> Iterator[Mistake]:
        if self.min_tiles > self.max_tiles:
            what = f"{self.min_tiles} is more than max_tiles ({self.max_tiles})"
            yield ("min_tiles",), self.min_tiles, mistake(what, f"write at most {self.max_tiles}")


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise mistake(f"{value!r} is no regular expression ({error})", "write all-linear or (q|v)_proj$") from None
    return value


class Lora(Section):
    """Low-rank adapters, through peft."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "r": "rank", "lora_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets",
        "lora_target_modules": "targets", "use_rslora": "rslora", "use_dora": "dora", "quantize": "quantise",
        "quantization": "quantise", "quantization_bit": "quantise", "load_in_4bit": "quantise",
        "load_in_8bit": "quantise",
    }  # fmt: skip

    rank: Count = 16
    """The width of an adapter."""
    alpha: Positive = 32
    """Its scale: the update is multiplied by alpha / rank."""
    dropout: Share = 0.0
    """Dropout before an adapter."""
    targets: Annotated[Line, AfterValidator(_pattern)] = "all-linear"
    """all-linear, or a regular expression over module names."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA)."""
    dora: bool = False
    """Learn the length of each weight vector apart from its direction (DoRA)."""
    quantise: Literal["none", "nf4"] = "none"
    """nf4: keep every linear layer of the parts with adapters in 4 bits, each 64 numbers with a scale (QLoRA)."""

    @rule
    def _lengths_need_all_digits(self) -> Iterator[Mistake]:
        if self.dora and self.quantise != "none":
            yield (
                ("dora",),
                True,
                mistake("the length of a quantised weight vector is not known", "remove one of the two"),
            )


class Train(Section):
    """How each part is trained."""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "vision_tower": "vision", "llm": "language", "lm": "language", "language_model": "language",
        "mlp": "projector", "connector": "projector", "text": "language",
    }  # fmt: skip

    vision: Training = "frozen"
    """The vision encoder: frozen, trained in full, or with LoRA."""
    projector: Literal["frozen", "full"] = "full"
    """The projector: frozen or trained in full."""
    language: Training = "full"
    """The language model: frozen, trained in full, or with LoRA."""
    embeddings: bool | None = None
    """Token embeddings and output head; by default they follow the language model (full) and are frozen otherwise."""
    vision_layers: Count | None = None
    """Only the last n layers of the vision encoder."""

    @rule
    def _layers_of_what_is_trained(self) -> Iterator[Mistake]:
        if self.vision_layers is not None and self.vision == "frozen":
            right = "write vision: full, or remove vision_layers"
            yield ("vision_layers",), self.vision_layers, mistake("the vision encoder is frozen", right)

    @rule
    def _something(self) -> Iterator[Mistake]:
        if {self.vision, self.projector, self.language} == {"frozen"} and not self.embeddings:
            right = "write projector: full, or language: lora"
            yield (), None, mistake("nothing is trained: every part is frozen", right)


class Model(Section):
    """`model`"""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "vision_tower": "vision", "vision_encoder": "vision", "vision_model": "vision", "llm": "language",
        "language_model": "language", "lm": "language", "model_name_or_path": "pretrained", "path": "pretrained",
        "name": "pretrained", "vis_proj": "projector", "gradient_checkpointing": "activation_checkpointing",
        "freeze": "train", "peft": "lora", "template": "chat_template", "dtype": "weights",
        "use_liger_kernel": "liger", "enable_liger_kernel": "liger", "use_liger": "liger",
    }  # fmt: skip

    TRAINED: ClassVar[tuple[str, ...]] = ("init_from",)

    vision: Vision | None = None
    """The vision encoder, for a model put together from parts; without one it trains on text."""
    language: Language | None = None
    """The language model, for a model put together from parts."""
    projector: Projector = Field(default_factory=Projector)
    """What turns image features into language embeddings."""
    pretrained: Annotated[Line, Field(examples=["llava-hf/llava-1.5-7b-hf"])] | None = None
    """A whole image-text or text-only model instead of vision, projector and language: a name or a folder."""
    init_from: Annotated[Line, Field(examples=["runs/sft-llama3-8b"])] | None = None
    """Weights to start from: an earlier run, one of its checkpoints, or a Hugging Face directory."""
    attention: Literal["plain", "mmca"] = "plain"
    """mmca: each modality is attended to with a softmax of its own."""
    tiling: Tiling = Field(default_factory=Tiling)
    """How an image becomes one or more squares of the vision encoder."""
    train: Train = Field(default_factory=Train)
    """How each part is trained."""
    lora: Lora | None = None
    """The adapters of the parts that are trained with LoRA."""
    chat_template: Literal["llama-2", "llama-3", "vicuna", "plain", "processor"] = "processor"
    """processor: the template that comes with the model."""
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    """auto: off, unless the memory plan says that a step does not fit."""
    weights: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type that frozen weights are kept in; auto: that of `precision`."""
    remote_code: Literal["refuse", "run what the checkpoint ships"] = "refuse"
    """Whether code that a checkpoint ships may run on your machine."""
    dropout: Share = 0.0
    """Dropout of the language model's attention weights."""
    liger: bool = False
    """Liger's kernels for the norms and MLPs of the language model, on a GPU; needs mmlaunch[liger]."""

    @property
    def learnt_in_full(self) -> list[str]:
        """The parts whose own weights change, and not only an adapter of theirs."""
        sees = self.pretrained is not None or self.vision is not None
        parts = ("vision", "projector", "language") if sees else ("language",)
        learnt = [part for part in parts if getattr(self.train, part) == "full"]
        return learnt or (["embeddings"] if self.train.embeddings else [])

    @property
    def learns_adapter_alone(self) -> bool:
        """Whether the model without its adapter stays what it was."""
        return self.lora is not None and not self.learnt_in_full

    @rule
    def _whole_or_in_parts(self) -> Iterator[Mistake]:
        if self.pretrained is None:
            return
        for key, left_out in (
            ("vision", self.vision is None), ("language", self.language is None), ("projector", self.projector.plain),
            ("tiling", self.tiling.plain), ("attention", self.attention == "plain"),
        ):  # fmt: skip
            if not left_out:
                what = "model.pretrained is a whole model already"
                yield (key,), key, mistake(what, f"remove {key}, or remove pretrained")

    @rule
    def _images_are_encoded(self) -> Iterator[Mistake]:
        """A language model alone trains on text; what it is told of images would do nothing."""
        if self.pretrained is not None or self.vision is not None or self.language is None:
            return
        for path, left_out in (
            (("projector",), self.projector.plain), (("tiling",), self.tiling.plain),
            (("attention",), self.attention == "plain"), (("train", "vision"), self.train.vision == "frozen"),
        ):  # fmt: skip
            if not left_out:
                what = "there is no vision encoder, this would do nothing"
                right = f"remove {path[-1]}, or add vision: openai/clip-vit-large-patch14-336"
                yield path, None, mistake(what, right)

    @rule
    def _patches_are_shuffled_in_fours(self) -> Iterator[Mistake]:
        random = self.vision.random if self.vision else None
        if random is not None and self.projector.kind == "pixel_shuffle" and (random.image_size // random.patch) % 2:
            side = random.image_size // random.patch
            what = f"pixel_shuffle needs an even number of patches a side, and the encoder has {side}"
            yield ("projector",), self.projector.kind, mistake(what, "write projector: mlp, or another image_size")

    @rule
    def _speaks(self) -> Iterator[Mistake]:
        if self.pretrained is None and self.language is None:
            right = "write language: meta-llama/Meta-Llama-3-8B-Instruct, or pretrained: llava-hf/llava-1.5-7b-hf"
            if self.init_from is not None:
                right = (
                    "init_from gives the weights; name the parts as the recipe of that run does (its model: section)"
                )
            yield (), None, mistake("names no language model", right)

    @rule
    def _layers_exist(self) -> Iterator[Mistake]:
        random, wanted = self.vision.random if self.vision else None, self.train.vision_layers
        if random is not None and wanted is not None and wanted > random.layers:
            what = f"the vision encoder has {random.layers} layers"
            yield ("train", "vision_layers"), wanted, mistake(what, f"write at most {random.layers}")

    @rule
    def _adapters_are_described(self) -> Iterator[Mistake]:
        wanted = "lora" in (self.train.vision, self.train.language)
        if self.lora is not None and not wanted:
            right = "write train: {language: lora}, or remove lora"
            yield ("lora",), None, mistake("no part is trained with LoRA, these options would do nothing", right)
        if wanted and self.lora is None:
            what = "trains with LoRA, but its options are missing"
            yield ("train",), None, mistake(what, "add model.lora: {rank: 64, alpha: 128}")


def _division(key: str, by_key: str, value: int, by: int) -> Iterator[Mistake]:
    if value % by:
        yield (key,), value, mistake(f"{value} does not divide by {by_key} ({by})", f"write a multiple of {by}")


def _one_source(path: str | None, random: Section | None, example: str) -> Iterator[Mistake]:
    if (path is None) == (random is None):
        what = "names both a path and random weights" if path else "names no model"
        yield (), None, mistake(what, f"write path: {example} or random: {{width: 96}}")
