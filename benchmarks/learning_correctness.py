"""Do the pairs that `correctness` makes teach anything? An SFT that ends early, its own answers, then DPO on the pairs.

    .venv/bin/python -m benchmarks.learning_correctness [SEED ...] > benchmarks/results/DATE-correctness.md

All drawings are PNG files in LLaVA's format. The model answers questions that it was not trained on, eight times each;
DPO and MPO learn from pairs.jsonl as it stands, and a second SFT from the answers that `score` has kept as right.
`evaluate` counts right answers to held-out questions, before and after. Last come pairs of DropoutNTP, each of which is
checked: both answers are the same up to the cut, and not behind it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmjobs.data.formats import shapes
from mmjobs.inference.dropout_ntp import begun
from mmlaunch.api import load, submit
from mmlaunch.results.merge import Merged, merge
from mmlaunch.results.summary import Evaluation

SEEDS = (0, 1, 2)
DRAWINGS = {"train": (0, 6000), "questions": (10_000, 2000), "held": (1_000_000, 960)}
"""The first of each set, and how many there are; no image is in two of them."""
MODEL: dict[str, Any] = {
    "vision": {"random": {"width": 96, "layers": 2, "heads": 4, "image_size": 32, "patch": 8}},
    "projector": "mlp",
    "language": {"random": {"width": 96, "layers": 2, "heads": 4}},
    "train": {"vision": "full", "projector": "full", "language": "full"},
}
BASE: dict[str, Any] = {
    "precision": "fp32",
    "resources": {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 2, "time": "2h"},
}
EARLY, LATER = (45, 1.5e-3), (100, 1e-4)
"""Steps of 64 rows, and the learning rate: of the first SFT, and of what comes after it."""
METHODS: dict[str, tuple[Any, tuple[int, float]]] = {
    "DPO": ({"method": "dpo", "beta": 2.0}, (100, 2e-4)),
    "MPO": ("mpo", LATER),
}
"""The objective, its steps and its learning rate. Those of DPO were chosen on the seeds 3 and 4."""
FLUENT = (90, 1.5e-3)


class Bench:
    """One seed: its folder, its drawings, and the model that learns."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed

    def source(self, name: str) -> dict[str, Any]:
        return {"path": str(self.folder / f"{name}.jsonl"), "format": "llava", "images": str(self.folder)}

    def train(self, name: str, objective: Any, source: Any, length: tuple[int, float], start: Any = None) -> Path:
        """Train to the end; returns the run directory."""
        steps, rate = length
        recipe = {
            "data": {"train": source, "workers": 0}, "objective": objective, "batch": {"global": 64}, "steps": steps,
            "optim": {"lr": rate, "schedule": "cosine", "warmup": "10 steps", "weight_decay": 0.01},
            "checkpoint": {"every": f"{steps} steps"}, "log": {"every": 10},
        }  # fmt: skip
        return Path(self._run(name, recipe, start).directory)

    def task(self, name: str, objective: dict[str, Any], source: Any, start: Path) -> tuple[Merged, Evaluation]:
        """Go through rows once; returns what was merged, and its evaluation."""
        evaluation = Evaluation()

        def look(record: dict[str, Any]) -> None:
            evaluation.add(record)

        run = self._run(name, {"data": {"input": source}, "objective": objective}, start)
        return merge(run.paths, look), evaluation

    def right(self, name: str, start: Path) -> float:
        """The share of held-out questions that are answered right."""
        task = {"method": "evaluate", "metric": "exact", "sampling": {"max_new_tokens": 16}}
        return _score(self.task(f"evaluate-{name}", task, self.source("held"), start)[1])

    def _run(self, name: str, recipe: dict[str, Any], start: Path | None) -> Any:
        model = MODEL | ({"init_from": str(start)} if start else {})
        path = self.folder / f"{name}-{self.seed}.yaml"
        whole = {"name": f"{name}-{self.seed}", "seed": self.seed, "model": model, **BASE, **recipe}
        path.write_text(json.dumps(whole))
        made = submit(load(path), cluster="local")
        status = made.wait()
        assert status.state == "done", f"{name}: {status}"
        return made


def draw(folder: Path) -> None:
    """The drawings as files, their rows, and as many captions."""
    for name, (first, count) in DRAWINGS.items():
        with (folder / f"{name}.jsonl").open("w") as rows, (folder / f"{name}-captions.jsonl").open("w") as captions:
            for number in range(first, first + count):
                one = shapes.example(number)
                one.images[0].open().save(folder / f"{number}.png")
                rows.write(_row(number, one.prompt[0].text, one.answers[0].text))
                captions.write(_row(number, "Describe the drawing.", caption(one.images[0])))


def caption(drawing: Any) -> str:
    def apart(name: str) -> int:
        return sum(abs(a - b) for a, b in zip(shapes.COLOURS[name], drawing.fill, strict=True))

    colour = min(shapes.COLOURS, key=apart)
    place = shapes.PLACES[(drawing.centre[0] > 32) + 2 * (drawing.centre[1] > 32)]
    return f"It is a {colour} {drawing.shape} at the {place}."


def _row(number: int, question: str, answer: str) -> str:
    talk = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return json.dumps({"id": number, "image": f"{number}.png", "conversations": talk}) + "\n"


def _score(evaluation: Evaluation) -> float:
    score = evaluation.overall.rows.score
    assert score is not None
    return score


def learn(bench: Bench) -> Iterator[str]:
    """One seed, from the first SFT to the last evaluation; the cells of its line in the table."""
    began, task = time.monotonic(), dict[str, Any]()
    sft = bench.train("sft", "sft", bench.source("train"), EARLY)
    sampling = {"answers": 8, "max_new_tokens": 16}
    task = {"method": "correctness", "metric": "exact", "instruction": "none", "sampling": sampling}
    made, asked = bench.task("correctness", task, bench.source("questions"), sft)
    yield f"{_score(asked):.2f} of {made.notes['answers']}"
    yield str(made.made_rows)
    yield f"{bench.right('sft', sft):.3f}"
    for name, (objective, length) in METHODS.items():
        yield f"{bench.right(name, bench.train(name, objective, {'path': str(made.made)}, length, sft)):.3f}"
    task = {"method": "score", "rewards": "exact", "select": "all", "least": 1}
    kept, _ = bench.task("score", task, {"path": str(made.output), "format": "predictions"}, sft)
    more = bench.train("more", "sft", {"path": str(kept.made)}, LATER, sft)
    yield f"{bench.right('more', more):.3f} ({kept.made_rows} rows)"
    yield f"{(time.monotonic() - began) / 60:.1f}"


def cut(bench: Bench) -> str:
    """Pairs of DropoutNTP from captions; every one is checked."""
    describes = bench.train("captions", "sft", bench.source("train-captions"), FLUENT)
    task = {"method": "dropout_ntp", "sampling": {"answers": 2, "max_new_tokens": 48}}
    held = bench.source("held-captions")
    merged, _ = bench.task("dropout_ntp", task, held, describes)
    assert merged.made is not None
    pairs = [json.loads(line) for line in merged.made.read_text().splitlines()]
    given = [json.loads(line)["conversations"][-1]["value"] for line in Path(held["path"]).read_text().splitlines()]
    for pair in pairs:
        (chosen,), (rejected,) = ([turn["content"] for turn in pair[side]] for side in ("chosen", "rejected"))
        prefix = chosen[: pair["begun"]]
        assert chosen == given[pair["index"]], "the chosen answer is that of the data"
        assert prefix == begun(chosen, 0.5) and prefix, "half of the words"
        assert rejected.startswith(prefix) and rejected[len(prefix) :] != chosen[len(prefix) :]
        assert "<image>" not in json.dumps(pair["prompt"]) and len(pair["images"]) == 1
    shown = ", ".join(f"{count} {what}" for what, count in sorted(merged.notes.items()))
    example = pairs[0]
    return (
        f"DropoutNTP: {shown}. In each of {len(pairs)} pairs both answers are the same up to the cut, the chosen one "
        f"is that of the data, and the rejected one goes on otherwise (asserted). The first one, cut behind "
        f"{example['begun']} letters: {example['chosen'][0]['content']!r}, {example['rejected'][0]['content']!r}"
    )


def main() -> None:
    print(f"# What pairs of right and wrong answers teach, {date.today()}\n")
    print(f"`python -m benchmarks.learning_correctness`, torch {version('torch')}, two ranks on two cores\n")
    others = " | ".join(f"after {name}" for name in METHODS)
    print(f"| seed | drawn answers, right | pairs | held out: SFT | {others} | after SFT on right answers | minutes |")
    print("|---|---|---|---|" + "---|" * len(METHODS) + "---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"MMLAUNCH_RUNS": str(folder / "runs"), "DS_ACCELERATOR": "cpu"}
        draw(folder)
        for seed in map(int, sys.argv[1:] or SEEDS):
            print(f"| {seed}", end="", flush=True)
            for cell in learn(Bench(folder, seed)):
                print(f" | {cell}", end="", flush=True)
            print(" |", flush=True)
        print(f"\n{cut(Bench(folder, SEEDS[0]))}")


if __name__ == "__main__":
    main()
