"""`data`: where examples come from and what happens to those that do not fit."""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from mmlaunch.recipe.plugin import PLUGIN_SCHEMA, Plugin, must_be_plugin, plugin_of
from mmlaunch.recipe.scalars import Count, Line, MemorySize, OneOrMore, bytes_of
from mmlaunch.recipe.section import Mistake, Section, mistake, rule
from mmlaunch.recipe.suggest import closest


@dataclass(frozen=True)
class Format:
    """What a recipe has to know of a data format; the file of its name in `mmjobs/data/formats` reads it."""

    image_folder: bool = False
    """Its rows name image files relative to a folder that the file does not tell."""
    scores: bool = True
    """Its rows may have scores."""
    generated: bool = False
    """Its rows come from no file."""
    answers: bool = True
    """Its rows have answers."""
    example: str = ""
    """One row of it; `mmlaunch data --formats` shows it."""


FORMATS: dict[str, Format] = {
    "auto": Format(),
    "llava": Format(
        image_folder=True,
        example='{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, '
        '{"from": "gpt", "value": ["best", "second"]}]}',
    ),
    "mdpo": Format(
        image_folder=True,
        scores=False,
        example='{"img_path": "a.jpg", "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."}',
    ),
    "internvl": Format(
        example='{"my_set": {"root": "images", "annotation": "rows.jsonl", "repeat_time": 1, "length": 1, '
        '"max_dynamic_patch": 12}}',
    ),
    "rlaif_v": Format(
        scores=False,
        example='{"image": "a.jpg", "question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}',
    ),
    "trl": Format(
        example='{"images": ["a.jpg"], "prompt": [{"role": "user", "content": "What is it?"}], "chosen": '
        '[{"role": "assistant", "content": "A cat."}], "rejected": [{"role": "assistant", "content": "A '
        'dog."}]}',
    ),
    "ultrafeedback": Format(
        example='{"prompt": "Hi", "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '
        '"Hello."}], "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '
        '"What?"}], "score_chosen": 8.0, "score_rejected": 5.0}',
    ),
    "shp": Format(
        example='{"post_id": "p1", "history": "How are you?", "human_ref_A": "Fine.", "human_ref_B": "No.", '
        '"score_A": 9, "score_B": 2, "labels": 1}',
    ),
    "prompts": Format(
        scores=False,
        answers=False,
        example='{"prompt": "What is it?", "image": "a.jpg"}',
    ),
    "vlmevalkit": Format(
        scores=False,
        answers=False,
        example='{"index": 1, "image_path": "a.jpg", "question": "What is it?", "A": "A cat", "B": "A dog", '
        '"answer": "A"}',
    ),
    "lmms_eval": Format(
        scores=False,
        example='{"doc_id": 1, "input": "What is it?", "target": "cat", "resps": [["A cat."]], '
        '"filtered_resps": ["A cat."]}',
    ),
    "llava_answers": Format(
        scores=False,
        answers=False,
        example='{"question_id": 1, "image": "a.jpg", "text": "What is it?", "category": "conv"}',
    ),
    "rewardbench": Format(
        scores=False,
        example='{"id": 1, "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog.", "subset": "refusals"}',
    ),
    "mt_bench": Format(
        scores=False,
        answers=False,
        example='{"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Make it shorter."]}',
    ),
    "predictions": Format(
        example='{"index": 0, "source": "data/test.jsonl", "prompt": "What is it?", "images": ["/data/a.jpg"], '
        '"truths": ["cat"], "predictions": ["A cat."], "finish": ["eos"], "tokens": {"prompt": 600, "answer": [4]}, '
        '"log_probs": [-1.2], "error": null}',
    ),
    "shapes": Format(generated=True),
}
"""By the name that a recipe writes."""
_OWN = Format()
"""What is assumed of a format of the user's own: its rows may have all that others have."""


def _format(value: Any) -> Any:
    """A format that comes with mmlaunch, or a function of the user's own."""
    if not isinstance(value, str) or value in FORMATS:
        return value
    if ":" in value:
        return must_be_plugin(value, "rows").written
    near = closest(value, FORMATS)
    right = f"did you mean {near}?" if near else f"write one of {', '.join(FORMATS)}, or my_format.py:rows"
    raise mistake(f"unknown value {value!r}", right)


FormatName = Annotated[str, BeforeValidator(_format), WithJsonSchema({"anyOf": [{"enum": [*FORMATS]}, PLUGIN_SCHEMA]})]


HUB_DATA = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<inside>[^\s].*))?")
"""How a path names a data set of the Hugging Face hub, as the hub's own libraries do."""


class Source(Section):
    """One data set of a mixture."""

    SHORT: ClassVar[str] = "path"

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "name": "path", "data_path": "path", "type": "format", "image_folder": "images", "image_root": "images",
        "root": "images", "config_name": "config", "subset": "config", "repeat_time": "repeat",
        "max_samples": "limit", "samples": "limit",
        "data_augment": "augment", "max_dynamic_patch": "max_tiles",
    }  # fmt: skip

    path: Annotated[Line, Field(examples=["data/rlaif-v"])] | None = None
    """A file or a folder, or a data set of the Hugging Face hub: hf://datasets/ORG/NAME, with @REVISION and a file or
    folder of it where one is meant. Only `format: shapes` needs none."""
    format: FormatName = "auto"
    """How its rows are written; auto recognises it. `mmlaunch data --formats` shows a row of each. A format of your own
    is a function that gives the examples of a source: my_format.py:rows, package.module:rows."""
    images: Annotated[Line, Field(examples=["data/images"])] | None = None
    """The folder to which image paths are relative; `none` for text-only data."""
    repeat: Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)] = 1.0
    """2: every row twice an epoch; 1.5: half of the rows twice; 0.3: 30 percent of the rows, chosen by the seed."""
    limit: Count | None = None
    """Use no more rows than this."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Leave out this many rows at the beginning."""
    config: Line | None = None
    """The configuration of a data set of the hub: the head of its README.md says which files are its."""
    split: Line | None = None
    """The split of a Hugging Face data set."""
    streaming: bool = False
    """The files of a data set of the hub (parquet, tar, JSON lines) are fetched when a row of them is read, and stay on
    the node while `cache_limit` allows. A run keeps the commit that it begins with. Training needs `data.shuffle:
    shards`."""
    cache_limit: Annotated[MemorySize, Field(examples=["50GB"])] | None = None
    """What a node holds of a source that is streamed; 50GB unless written. It is in TMPDIR, which a cluster profile
    sets with `scratch`."""
    augment: Literal["none", "jpeg"] = "none"
    """jpeg: encode the image again at a random quality from 75 to 100."""
    max_tiles: Count | None = None
    """A smaller tile budget than model.tiling's for this source."""

    @property
    def kind_of_rows(self) -> Format:
        """What is known of its format."""
        return FORMATS.get(self.format, _OWN)

    @property
    def cache_bytes(self) -> int:
        """`cache_limit` as a number."""
        return bytes_of(self.cache_limit or "50G")

    @classmethod
    def replaced_by(cls, keys: Container[str]) -> Container[str]:
        """Rows from elsewhere, or of another form, are another data set: which rows of the old one are used does not
        say anything about them."""
        return ("limit", "skip", "split", "config") if "path" in keys or "format" in keys else ()

    @property
    def plugin(self) -> Plugin | None:
        """The function of the user's own that reads it."""
        return None if self.format in FORMATS else plugin_of(self.format)

    @rule
    def _read_or_drawn(self) -> Iterator[Mistake]:
        if self.kind_of_rows.generated and self.path is not None:
            yield ("path",), self.path, mistake("shapes are drawn, not read", "remove path")
        if not self.kind_of_rows.generated and self.path is None:
            yield (), None, mistake("names no file", "write path: data/train.json")

    @field_validator("path")
    @classmethod
    def _names_the_hub(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("hf:") and HUB_DATA.fullmatch(value) is None:
            right = "write hf://datasets/ORG/NAME, hf://datasets/ORG/NAME@REVISION/FOLDER"
            raise mistake(f"{value!r} names no data set of the hub", right)
        return value

    @rule
    def _streams(self) -> Iterator[Mistake]:
        if self.streaming and (self.path is None or HUB_DATA.fullmatch(self.path) is None):
            what = "only data sets of the hub are streamed; files are read where they are"
            yield ("streaming",), True, mistake(what, "remove streaming, or write path: hf://datasets/ORG/NAME")
        if self.streaming and self.format == "internvl":
            yield (
                ("streaming",),
                True,
                mistake("a meta file names others, which cannot be streamed", "remove streaming"),
            )
        if self.cache_limit is not None and not self.streaming:
            yield ("cache_limit",), self.cache_limit, mistake("limits what is streamed", "add streaming: true")

    @rule
    def _configuration_of_the_hub(self) -> Iterator[Mistake]:
        found = HUB_DATA.fullmatch(self.path or "")
        if self.config is not None and (found is None or found["inside"]):
            what = "a configuration is one of a whole data set of the hub"
            yield ("config",), self.config, mistake(what, "write path: hf://datasets/ORG/NAME, or remove config")

    @rule
    def _ends(self) -> Iterator[Mistake]:
        if self.kind_of_rows.generated and self.limit is None:
            yield ("format",), self.format, mistake("shapes never end", "add limit: 2000")

    @rule
    def _images_are_somewhere(self) -> Iterator[Mistake]:
        if self.kind_of_rows.image_folder and self.images is None:
            what = f"rows of the {self.format} format name image files, and nothing says where they are"
            yield ("format",), self.format, mistake(what, "add images: data/images (or images: none for text)")


Sources = Annotated[list[Source], OneOrMore()]


class Data(Section):
    """`data`"""

    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "training": "train", "validation": "eval", "val": "eval", "test": "eval", "max_length": "max_tokens",
        "max_seq_len": "max_tokens", "max_seq_length": "max_tokens",
        "max_prompt_length": "max_tokens", "num_workers": "workers", "shuffle_buffer": "shuffle_window",
        "shuffle_buffer_size": "shuffle_window", "buffer_size": "shuffle_window",
        "shuffle_block_size": "shuffle_window",
    }  # fmt: skip

    train: Sources = []
    """The data sets that are trained on: a path, a mapping, or a list of them."""
    input: Sources = []
    """The data sets that a task without training goes through, such as predict."""
    eval: Sources = []
    """Held-out data sets, for evaluation alone."""
    on_bad: Literal["error", "skip"] = "error"
    """What a broken row or image does; skipped ones are listed in the run directory."""
    max_tokens: Count = 2048
    """The longest example, image tokens included."""
    overlong: Literal["drop", "cut"] = "drop"
    """What happens to longer ones; an image is never cut, and answers that would become the same are left out."""
    shuffle: Literal["rows", "shards"] = "rows"
    """rows: each epoch mixes all rows. shards: it mixes the shards (files of parquet and tar; of other files, 1,000
    rows each), reads them in turn, and mixes their rows within `shuffle_window`: for files that are streamed, or large
    on a slow disk."""
    shuffle_window: Annotated[int, Field(ge=1, le=10**9)] = 10_000
    """With `shuffle: shards`, so many rows at a time are mixed with each other; the shards that they are in have to fit
    in `cache_limit`."""
    deduplicate: bool = True
    """Training prompts that also stand in the evaluation data are left out, and counted."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes per rank that decode images and tokenise."""

    @rule
    def _window_of_shards(self) -> Iterator[Mistake]:
        default = type(self).model_fields["shuffle_window"].default
        if self.shuffle == "rows" and self.shuffle_window != default:
            what = "shuffle: rows mixes all rows, and knows no window"
            yield ("shuffle_window",), self.shuffle_window, mistake(what, "write shuffle: shards, or remove it")

    @rule
    def _streamed_in_turn(self) -> Iterator[Mistake]:
        for place, source in enumerate(self.train):
            if source.streaming and self.shuffle == "rows":
                what = "rows in any order would fetch a file for each of them"
                yield ("train", place, "streaming"), True, mistake(what, "add data.shuffle: shards")
        for place, source in enumerate(self.input):
            if source.streaming:
                yield ("input", place, "streaming"), True, mistake("only training and evaluation stream", "remove it")

    @property
    def inputs(self) -> list[Source]:
        """What a task without training goes through."""
        return self.input or self.train


def names(sources: Sequence[Source]) -> list[str]:
    """What sources are called: after their file or folder, with the folder above where two would be called the same,
    and with a number where that is the same as well."""
    paths = [Path(source.path or source.format) for source in sources]
    plain = [path.stem for path in paths]
    longer = [
        f"{path.parent.name}/{name}" if plain.count(name) > 1 and path.parent.name else name
        for path, name in zip(paths, plain, strict=True)
    ]
    return [name if longer.count(name) == 1 else f"{name}-{place}" for place, name in enumerate(longer, 1)]
