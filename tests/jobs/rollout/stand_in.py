"""A stand-in for vLLM: a server of the same protocol, whose engine is transformers and a real, tiny model.

It reads the served folder as anyone would, and never sees a tensor of the trainer. `--options` switch on faults.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmjobs.model.checksum import checksum
from mmjobs.rollout.external.messages import Answer, Question, Settings
from mmjobs.rollout.external.serve import arguments, serve
from mmlaunch.run.paths import SERVED

Asked = tuple[str, Question, int, Settings]


class StandIn:
    """Answers the prompts one after the other, and all answers of a prompt together."""

    def __init__(self, model: Path, options: dict[str, Any]) -> None:
        self.name, self.release = options.get("name", "stand-in"), options.get("release", "1")
        self._fault, self._once = options.get("fault", ""), Path(options.get("once", "/nowhere"))
        self._network: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
        self._processor: Any = AutoProcessor.from_pretrained(model)
        self._asked: list[Asked] = []
        self._loads, self._steps = 0, 0
        self._checksums: dict[str, list[int]] = {}

    def load(self, folder: Path, moved: Callable[[], None]) -> dict[str, list[int]]:
        self._loads += 1
        if self._fault == "stale" and self._loads > 1:
            return self._checksums
        state: dict[str, torch.Tensor] = {}
        for file in json.loads((folder / SERVED).read_text())["files"]:
            state |= safetensors.torch.load_file(folder / file)
            moved()
        self._network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self._checksums = {name: list(checksum(tensor)) for name, tensor in state.items()}
        return self._checksums

    def add(self, key: str, prompt: Question, seed: int, settings: Settings) -> None:
        self._asked.append((key, prompt, seed, settings))

    def step(self) -> list[tuple[str, list[int], Answer]]:
        if not self._asked:
            return []
        self._steps += 1
        self._fail()
        prompt, settings = self._asked[0][1], self._asked[0][3]
        together = [asked for asked in self._asked if asked[1] is prompt]
        self._asked = [asked for asked in self._asked if asked[1] is not prompt]
        ids, images = self._read(prompt)
        answers = self._answers(ids, images, [seed for _, _, seed, _ in together], settings)
        ids = ids[:1] * (self._fault == "expands") + ids
        return [(key, ids, answer) for (key, *_), answer in zip(together, answers, strict=True)]

    def _fail(self) -> None:
        """Faults that come once leave a file, so that the server which is started next does without."""
        if self._fault in ("dies", "hangs") and self._steps == 3 and not self._once.exists():
            if str(self._once) != "/nowhere":
                self._once.touch()
            if self._fault == "dies":
                os._exit(7)
            time.sleep(600)

    def _read(self, prompt: Question) -> tuple[list[int], dict[str, torch.Tensor]]:
        """The prompt with as many image tokens as the processor's own expansion has."""
        images = [Image.open(io.BytesIO(base64.b64decode(image))) for image in prompt.images]
        if not images:
            return prompt.ids, {}
        token = self._processor.image_token
        made = self._processor(text=token * len(images), images=images, return_tensors="pt", **prompt.options)
        own = self._processor.tokenizer.convert_tokens_to_ids(token)
        count = made["input_ids"][0].tolist().count(own) // len(images)
        ids = [one for token in prompt.ids for one in [token] * (count if token == own else 1)]
        return ids, {"pixel_values": made["pixel_values"]}

    @torch.no_grad()
    def _answers(
        self, ids: list[int], images: dict[str, torch.Tensor], seeds: list[int], settings: Settings
    ) -> list[Answer]:
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        answers = [Answer([], []) for _ in seeds]
        count = len(seeds)
        given = {name: values.repeat(count, *[1] * (values.ndim - 1)) for name, values in images.items()}
        output = self._network(input_ids=torch.tensor([ids] * count), **given, use_cache=True)
        for length in range(settings.max_new_tokens):
            scores = output.logits[:, -1].float() / (settings.temperature or 1.0)
            allowed = scores.clone()
            allowed[:, settings.forbidden] = -torch.inf
            if length < settings.min_new_tokens:
                allowed[:, settings.stops] = -torch.inf
            drawn = []
            for row, answer in enumerate(answers):
                share = allowed[row].softmax(-1)
                token = int(share.multinomial(1, generator=draws[row]) if settings.temperature else share.argmax())
                drawn.append(token)
                if not (answer.ids and answer.ids[-1] in settings.stops):
                    answer.ids.append(token)
                    answer.log_probs.append(float(scores[row].log_softmax(-1)[token]) - (self._fault == "log_probs"))
            if all(answer.ids[-1] in settings.stops for answer in answers):
                break
            past = output.past_key_values
            output = self._network(input_ids=torch.tensor(drawn)[:, None], past_key_values=past, use_cache=True)
        return answers


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = arguments()
    serve(lambda: StandIn(given.model, given.options), given.host, given.port)
