"""How fast `predict` answers questions about images: against loops over transformers' `generate`.

    .venv/bin/python -m benchmarks.generate > benchmarks/results/DATE-generate.md

Turn by turn on one core, all in this process. Ours is the loop of a shard: real rows of a file, JPEG files, windows and
batches, records that are committed to the disk; only the start is not counted. The others read the same rows by the
processor that was saved with the model:

* one by one, as InternVL's scripts do: processor, `generate`, decode;
* so many at a time as ours, padded on the left;
* one by one as VLMEvalKit does: the cache is emptied after each sample, and all results are written anew every ten.

The weights are random and large, so that greedy answers are different words for every prompt; eight of the letters end
an answer, so that ends fall where they fall between 32 and 64 tokens. All sides must give the same answers.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.preference_trainers import RECIPE
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmjobs.data.formats import shapes
from mmjobs.inference.inputs import InputRows, measured
from mmjobs.inference.predict import Predict
from mmjobs.inference.records import RecordFile
from mmjobs.inference.shard import Shard
from mmjobs.model.build import build
from mmjobs.rank.context import Context
from mmjobs.rank.events import EventWriter
from mmjobs.rank.position import Position
from mmjobs.rank.ranks import Ranks, join
from mmjobs.rank.signals import StopRequest
from mmjobs.rank.watchdog import Watchdog
from mmlaunch.recipe.check import recipe_of
from mmlaunch.run import shards
from mmlaunch.run.paths import RunPaths
from mmlaunch.run.shards import Definition
from mmlaunch.submit.plan import deepspeed

ROUNDS, ROWS, BATCH, LEAST, MOST = 3, 24, 8, 32, 64
FEW, KEPT = 8, 20_000
STOPS = "aeiostrn"
"""These letters end an answer."""
SPREAD = 3.0
"""So many times the usual random weights."""
Row = dict[str, Any]


def main() -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters, rows = make(folder)
        print(f"# Generation, {date.today()}\n")
        where = f"torch {version('torch')}, transformers {version('transformers')}"
        print(f"`python -m benchmarks.generate`, {where}, fp32, one core; {parameters / 1e6:.0f} M parameters")
        print(f"{ROUNDS} rounds of {ROWS} rows, turn by turn; medians, and the range of the ratios\n")
        with joined(folder) as ranks:
            their = Theirs(folder, rows)
            works = {"ours": ours(folder, ranks), **their.loops()}
            compare({name: each() for name, each in works.items()}, their.lengths[-ROWS:])
            table(works, ROWS)
            several(folder, ranks)
        writing(folder)


def make(folder: Path) -> tuple[int, list[Row]]:
    """The model and its processor, saved; rows with JPEG files, and questions of 10 to 300 letters."""
    torch.manual_seed(0)
    built = build(recipe_of(RECIPE | {"model": RECIPE["model"]}).model)
    with torch.no_grad():
        for parameter in built.network.model.language_model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(SPREAD)
    built.network.save_pretrained(folder / "model")
    built.processor.save_pretrained(folder / "model")
    dice, rows = random.Random(0), []
    for number in range(ROWS):
        shapes.example(number).images[0].open().resize((480, 360)).save(folder / f"{number}.jpg", quality=90)
        words = "".join(dice.choice("abcdefghij ") for _ in range(round(10 * 30 ** dice.random())))
        rows.append({"id": number, "image": f"{number}.jpg", "prompt": f"What is {words}?"})
    for name, chosen in {
        "rows": rows,
        "few": rows[:FEW],
        "repeated": [row for row in rows[:FEW] for _ in range(4)],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return sum(one.numel() for one in built.network.parameters()), rows


@contextmanager
def joined(folder: Path) -> Iterator[Ranks]:
    """This process as the only rank of a job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MMLAUNCH_ATTEMPT": "1", "MMLAUNCH_HANG_SECONDS": "3600"}
    paths = RunPaths(folder / "watched")
    paths.attempt(1).logs.mkdir(parents=True)
    with Watchdog(paths, Position()) as watch:
        ranks = join(watch)
        yield ranks
        ranks.leave()


def ours(folder: Path, ranks: Ranks, rows: str = "rows", **sampling: Any) -> Callable[[], list[str]]:
    """The loop of a shard, ready to run as often as one likes; it returns the answers in the order of the rows."""
    settings = {"max_new_tokens": MOST, "min_new_tokens": LEAST, "temperature": 0, "prompts": BATCH}
    task = {"method": "predict", "sampling": {**settings, "stop": list(STOPS), **sampling}}
    data = {"input": {"path": str(folder / f"{rows}.jsonl"), "format": "prompts", "images": str(folder)}, "workers": 0}
    model = {"pretrained": str(folder / "model")}
    plain = {name: RECIPE[name] for name in ("name", "precision", "log", "resources")}
    recipe = recipe_of({**plain, "model": model, "data": data, "objective": task})
    inputs = InputRows(recipe.data.inputs)
    definition = Definition(len(inputs), 512, BATCH, ((0, len(inputs)),), tuple(measured(recipe.data.inputs)))
    paths = RunPaths(folder / f"task-{rows}" / "shards" / "0")
    paths.attempt(1).logs.mkdir(parents=True)
    paths.attempt(1).deepspeed.write_text(json.dumps(deepspeed(recipe, 1, 1)))
    context = Context(recipe, paths, ranks, Quiet(paths, 1, True), Position(), StopRequest())
    predict = Predict(context)

    def work() -> list[str]:
        for file in (shards.records(paths), shards.commits(paths), shards.footer(paths)):
            file.unlink(missing_ok=True)
        Shard(context, predict, definition, inputs).run()
        records = [json.loads(line) for line in shards.records(paths).read_text().splitlines()]
        return [text for one in sorted(records, key=lambda one: int(one["index"])) for text in one["predictions"]]

    return work


class Quiet(EventWriter):
    """Events go into the ledger alone: what is printed here is the result."""

    def log(self, line: str) -> None:
        return


class Theirs:
    """transformers' own model and processor, from the same files; `lengths` are those of the last answers."""

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        self._folder, self._rows = folder, rows
        self._model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32).eval()
        self._processor = AutoProcessor.from_pretrained(folder / "model")
        self._processor.tokenizer.padding_side = "left"
        tokenizer = self._processor.tokenizer
        self._ends = sorted({tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(stop) for stop in STOPS)})
        rest = set(range(len(tokenizer), self._model.get_output_embeddings().weight.shape[0]))
        self._never = sorted({*tokenizer.all_special_ids, self._model.config.image_token_id, *rest} - {*self._ends})
        self.lengths: list[int] = []

    def loops(self) -> dict[str, Callable[[], list[str]]]:
        many = f"transformers, {BATCH} at a time"
        return {"transformers, one by one": self.one_by_one, many: self.padded, "VLMEvalKit's loop": self.vlmevalkit}

    def one_by_one(self) -> list[str]:
        self.lengths = []
        return [text for row in self._rows for text in self._answers([row])]

    def padded(self) -> list[str]:
        batches = [self._rows[first : first + BATCH] for first in range(0, len(self._rows), BATCH)]
        return [text for rows in batches for text in self._answers(rows)]

    def vlmevalkit(self) -> list[str]:
        results: dict[int, str] = {}
        for number, row in enumerate(self._rows):
            (results[number],) = self._answers([row])
            torch.cuda.empty_cache()
            if (number + 1) % 10 == 0:
                (self._folder / "results.pkl").write_bytes(pickle.dumps(results))
        (self._folder / "results.pkl").write_bytes(pickle.dumps(results))
        return list(results.values())

    def _answers(self, rows: Sequence[Row]) -> list[str]:
        images = [Image.open(self._folder / row["image"]).convert("RGB") for row in rows]
        texts = [self._text(row["prompt"]) for row in rows]
        inputs = self._processor(images=images, text=texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            made = self._model.generate(
                **inputs, do_sample=False, max_new_tokens=MOST, min_new_tokens=LEAST, eos_token_id=self._ends,
                pad_token_id=self._processor.tokenizer.pad_token_id, suppress_tokens=self._never,
            )  # fmt: skip
        return [self._read(ids.tolist()) for ids in made[:, inputs["input_ids"].shape[1] :]]

    def _text(self, prompt: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        talk = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(talk, add_generation_prompt=True))

    def _read(self, ids: list[int]) -> str:
        """The answer without the token that ended it."""
        end = next((place for place, token in enumerate(ids) if token in self._ends), len(ids))
        self.lengths.append(min(end + 1, len(ids)))
        return str(self._processor.tokenizer.decode(ids[:end], skip_special_tokens=True))


def compare(answers: dict[str, list[str]], lengths: Sequence[int]) -> None:
    first, *others = answers.values()
    for side, one in zip(list(answers)[1:], others, strict=True):
        same = sum(a == b for a, b in zip(first, one, strict=True))
        assert same == len(first) or "at a time" in side, f"{side}: {same} of {len(first)} answers are the same"
        print(f"* {side}: {same} of {len(first)} greedy answers are the same as ours")
    tenth, middle, last = (statistics.quantiles(lengths, n=10)[place] for place in (0, 4, 8))
    print(f"* tokens of an answer: {tenth:.0f}, {middle:.0f}, {last:.0f} (quantiles .1, .5, .9)\n")


def turns(works: Sequence[Callable[[], Any]]) -> list[list[tuple[float, float]]]:
    """CPU seconds and seconds of each, in each round."""
    spent: list[list[tuple[float, float]]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for place, work in enumerate(works):
            began = time.process_time(), time.perf_counter()
            work()
            spent[place].append((time.process_time() - began[0], time.perf_counter() - began[1]))
    return spent


def table(works: dict[str, Callable[[], Any]], count: int) -> None:
    """Samples a second of each, and how much longer the others take than the first."""
    print("| what | samples a CPU second | ours are faster: CPU | wall |\n|---|---|---|---|")
    first, *others = turns(list(works.values()))
    for name, one in zip(works, [first, *others], strict=True):
        rate = count / statistics.median(cpu for cpu, _ in one)
        ratios = [sorted(b[at] / a[at] for a, b in zip(first, one, strict=True)) for at in range(2)]
        shown = [f"{statistics.median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})" for each in ratios]
        print(f"| {name} | {rate:.2f} | {' | '.join(shown if one is not first else ('', ''))} |", flush=True)


def several(folder: Path, ranks: Ranks) -> None:
    """Four answers to a prompt, against the same prompt four times."""
    four, single = (
        ours(folder, ranks, "few", temperature=1.0, answers=4),
        ours(folder, ranks, "repeated", temperature=1.0),
    )
    assert len(four()) == len(single()) == 4 * FEW
    print(f"\n{FEW} prompts with four answers each, at temperature 1:\n")
    table({"ours, n = 4": four, "ours, each prompt four times": single}, 4 * FEW)


def writing(folder: Path) -> None:
    """What it takes to keep the results: records that are appended and flushed, or a pickle that is written anew."""
    text, commits = "x" * 60, folder / "kept"
    commits.mkdir()
    began = time.perf_counter()
    file = RecordFile(RunPaths(commits))
    for number in range(KEPT // BATCH):
        rows = range(number * BATCH, (number + 1) * BATCH)
        file.append({number: [{"index": row, "predictions": [text], "error": None} for row in rows]}, 0.0)
    appended, began = time.perf_counter() - began, time.perf_counter()
    results: dict[int, str] = {}
    for row in range(KEPT):
        results[row] = text + str(row)
        if (row + 1) % 10 == 0:
            (folder / "results.pkl").write_bytes(pickle.dumps(results))
    rewritten = time.perf_counter() - began
    print(
        f"\nTo keep {KEPT:,} results: ours {appended:.1f} s, each batch of {BATCH} flushed to the disk. A pickle of all"
    )
    print(f"results, written anew every 10 and not flushed: {rewritten:.1f} s, four times that for twice as many.")


if __name__ == "__main__":
    main()
