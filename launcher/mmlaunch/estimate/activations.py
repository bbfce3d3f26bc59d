"""The memory of activations and logits, by formula: what a forward pass keeps for the backward pass.

Bytes for each token and layer, with e bytes a number (2 in half precision, 4 in fp32), width h, queries q and keys k
(heads x head width), MLP width m, as eager transformers runs it, with attention that never writes T x T scores:

    norms       2 x (4 h  the input, in fp32;  e h  the normalised input, if the scale is trained;
                     e h  the output, if the layer after it is trained)
    attention   e (2 q + 2 k)   queries, keys, values and the output
    MLP         e (3 m + m)     gate, its SiLU, up; and their product, if the layer after it is trained

For Llama-3 8B trained as a whole in bf16 that is 0.2 MB, 6.4 MB over 32 layers. LoRA lacks the scales, a frozen model
through which gradients flow lacks the inputs of its layers as well. With checkpointing a layer keeps its input alone,
e h, and one layer at a time has all of the above again. Backward adds gradients of the widest layer: e (4 m + 2 h).

An encoder layer keeps e (8 h + 3 m): norms, queries, keys, values and outputs, and a GELU of m in three pieces. A
frozen encoder keeps nothing beyond its forward pass, which comes before the language model's; it hands out every hidden
layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmlaunch.estimate.counts import Counts
from mmlaunch.estimate.shapes.language import Decoder
from mmlaunch.estimate.shapes.network import Network
from mmlaunch.estimate.shapes.vision import Encoder
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.batch import split
from mmlaunch.recipe.inference import Generating
from mmlaunch.recipe.parts import training_of
from mmlaunch.recipe.reinforcement import Reinforcement
from mmlaunch.recipe.sampling import Sampling

TEXT = 256
"""Tokens of text that come with an image, where a row's number of images has to be guessed."""
LEARNT = 4
"""One token in so many is part of an answer. Only those have logits."""
PIECE, ROWS = 1 << 27, 128
"""Logits that exist at a time on a GPU, and tokens that have some on a CPU."""
_TEXT_ONLY = ("ultrafeedback", "shp")


@dataclass(frozen=True)
class Row:
    """What the model processes at a time."""

    tokens: int
    longest: int
    """The number of tokens of one example."""
    squares: int
    """Squares of pixels."""


def row_of(recipe: Recipe, network: Network) -> Row:
    """The fullest row that the recipe allows."""
    longest = min(recipe.data.max_tokens, network.language.positions)
    tokens = recipe.batch.tokens_per_gpu
    if tokens is None and not recipe.trains:
        tokens = longest
    if tokens is None:
        shares = split(recipe.batch.examples, recipe.trainers.world, recipe.batch.micro)
        assert shares is not None  # the recipe was validated
        tokens = shares[0] * longest
    if not network.features or all(source.format in _TEXT_ONLY for source in recipe.data.train or recipe.data.inputs):
        return Row(tokens, longest, 0)
    images = max(1, tokens // (network.tokens + TEXT))
    return Row(tokens, longest, min(images * network.squares, max(1, tokens // network.features)))


def width_of(precision: str) -> int:
    """Bytes of a number."""
    return 4 if precision == "fp32" else 2


def language_layer(shape: Decoder, training: str, width: int, rank: int = 0) -> int:
    """Bytes that one layer of a language model keeps for each token."""
    learns = training != "frozen"
    scales = width * shape.width if training == "full" else 0
    norms = shape.norms * (4 * shape.width + scales + (width * shape.width if learns else 0))
    attention = width * (2 * shape.queries + 2 * shape.keys)
    mlp = width * shape.inner * (4 if learns else 3)
    return norms + attention + mlp + (7 * width * rank if training == "lora" else 0)


def vision_layer(shape: Encoder, width: int) -> int:
    """Bytes that one layer of an encoder keeps for each patch."""
    return width * (8 * shape.width + (4 if shape.gated else 3) * shape.inner)


def activations(recipe: Recipe, network: Network, counts: Counts, row: Row, checkpointing: bool) -> int:
    """Bytes at the peak of a step, the encoder's included."""
    width = width_of(recipe.precision)
    seen = _vision(recipe, network, counts, row, checkpointing)
    if isinstance(recipe.objective, Generating):
        return seen + generation(recipe, recipe.objective.sampling, network)
    if not recipe.trains:
        return max(seen, width * row.tokens * (8 * network.language.width + 4 * network.language.inner))
    language = _language(recipe, network.language, row, checkpointing)
    step = seen + language if counts.trains("vision") else max(seen, language)
    if not isinstance(recipe.objective, Reinforcement):
        return step
    return max(step, generation(recipe, recipe.objective.sampling, network))


def logits(recipe: Recipe, shape: Decoder, row: Row) -> int:
    """The vocabulary at the learnt tokens, a piece at a time: logits, softmax and its gradient, in fp32 and cast."""
    if recipe.objective.has_scoring_head or not recipe.trains:
        return 0
    piece = PIECE if recipe.resources.gpus_per_node else ROWS * shape.words
    return min(row.tokens // LEARNT * shape.words, piece) * (12 if recipe.precision == "fp32" else 14)


def _language(recipe: Recipe, shape: Decoder, row: Row, checkpointing: bool) -> int:
    width, rank = width_of(recipe.precision), recipe.model.lora.rank if recipe.model.lora else 0
    layer = language_layer(shape, training_of("language", recipe.model), width, rank)
    if recipe.model.attention == "mmca":  # two softmaxes in fp32 and their outputs, over all earlier tokens
        layer += 16 * shape.heads * min(row.longest, row.tokens)
    kept = shape.layers * width * shape.width + layer if checkpointing else shape.layers * layer
    ends = 2 * width * shape.width + 4 * shape.width + 2 * width * shape.width  # embeddings and the last norm
    backward = width * (4 * shape.inner + 2 * shape.width)
    return row.tokens * (kept + ends + backward)


def _vision(recipe: Recipe, network: Network, counts: Counts, row: Row, checkpointing: bool) -> int:
    shape, width = network.vision, width_of(recipe.precision)
    if shape is None or not row.squares:
        return 0
    patches = row.squares * shape.places
    layer = vision_layer(shape, width)
    if not counts.trains("vision"):
        return patches * ((shape.layers + 1) * width * shape.width + layer)
    layers = network.used if network.used is not None else shape.layers
    learning = min(layers, recipe.model.train.vision_layers or layers)
    kept = layers * width * shape.width + layer if checkpointing else learning * layer
    return patches * kept


def generation(recipe: Recipe, sampling: Sampling, network: Network) -> int:
    """Bytes while answers are generated: keys and values of each prompt once and of all its answers, a few scores of
    the whole vocabulary for each answer. At ZeRO stage 3 a rank may gather what the others keep as well: `gathered`."""
    if recipe.objective.served_by is not None:
        return 0
    shape, width = network.language, width_of(recipe.precision)
    answers = sampling.prompts * sampling.answers
    longest = min(recipe.data.max_tokens, shape.positions)
    if recipe.trains:  # where answers count in data.max_tokens as well
        longest = max(1, longest - sampling.max_new_tokens)
    tokens = sampling.prompts * longest + answers * sampling.max_new_tokens
    kept = tokens * shape.layers * 2 * shape.keys * width
    scores = answers * shape.words * 32  # in fp32 and, for the draw, in fp64
    return kept + scores


def gathered(recipe: Recipe, counts: Counts) -> int:
    """Bytes of a policy at ZeRO stage 3 that other ranks keep."""
    world = recipe.trainers.world
    return counts.total * width_of(recipe.precision) * (world - 1) // world if recipe.deepspeed.stage == 3 else 0
