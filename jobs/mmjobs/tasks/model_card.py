"""The model card of an export: what was trained, how it was measured, and the prompt that the model knows."""

from __future__ import annotations

import json
from dataclasses import dataclass

from mmjobs.data.chat import Chat
from mmjobs.data.example import IMAGE, Turn
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.scalars import HUB_NAME

_QUESTION = "What is this?"


@dataclass(frozen=True)
class Card:
    """The README.md of an exported directory."""

    recipe: Recipe
    step: int
    metrics: dict[str, float]
    kind: str
    """The class of transformers that reads the weights."""
    has_adapter: bool
    own: bool
    """Whether the network is a class of ours, which has to be imported first."""
    has_processor: bool

    def text(self, chat: Chat) -> str:
        return "\n".join([*self._head(), *self._numbers(), *self._code(chat), *self._prompt(chat), *self._notes(), ""])

    def _head(self) -> list[str]:
        model = self.recipe.model
        named = [model.pretrained, model.language and model.language.path, model.vision and model.vision.path]
        bases = [name for name in named if name and HUB_NAME.fullmatch(name)]  # the hub takes no folders
        head = ["---", "library_name: transformers", f"tags: [mmlaunch, {self.recipe.objective.method}]"]
        head += ["base_model:", *(f"  - {json.dumps(name)}" for name in bases)] if bases else []
        said = (
            f"Trained with mmlaunch: {self.recipe.objective.method}, step {self.step}. The recipe is in `recipe.yaml`."
        )
        return [*head, "---", "", f"# {self.recipe.name}", "", said, ""]

    def _numbers(self) -> list[str]:
        rows = [f"| {name} | {value:.4f} |" for name, value in self.metrics.items()]
        return ["| metric | value |", "|---|---|", *rows, ""] if rows else []

    def _code(self, chat: Chat) -> list[str]:
        sees = chat.image_token is not None
        reader = "AutoProcessor" if self._reads_images else "AutoTokenizer"
        words = f'{{"type": "text", "text": "{_QUESTION}"}}'
        content = f'[{{"type": "image", "url": IMAGE}}, {words}]' if sees else f'"{_QUESTION}"'
        imports = ["import mmjobs.model.llava  # a projector or an attention that LLaVA lacks"] if self.own else []
        imports += ["from peft import PeftModel"] if self.has_adapter else []
        lines = ["```python", *imports, f"from transformers import {self.kind}, {reader}", ""]
        lines += [f"model = {self.kind}.from_pretrained(PATH)"]
        lines += ["model = PeftModel.from_pretrained(model, PATH + '/adapter')"] if self.has_adapter else []
        lines += [f"processor = {reader}.from_pretrained(PATH)"]
        if self.kind.endswith("SequenceClassification"):
            return [*lines, "```", ""]
        lines += [f'messages = [{{"role": "user", "content": {content}}}]']
        if self._reads_images or not sees:
            lines += ["inputs = processor.apply_chat_template("]
            lines += ['    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"']
            lines += [")", "output = model.generate(**inputs, max_new_tokens=256)"]
        return [*lines, "```", ""]

    def _prompt(self, chat: Chat) -> list[str]:
        """As the template writes it: nothing else was trained."""
        content = (IMAGE, _QUESTION) if chat.image_token is not None else (_QUESTION,)
        turns = [Turn("user", content)]
        scores = self.kind.endswith("SequenceClassification")
        text = chat.answered(turns, "It is a circle.") if scores else chat.asked(turns)
        what = "What it scores, the last token first of all" if scores else "The prompt that it was trained on"
        return [
            f"{what}, here for {'an image and ' if len(content) > 1 else ''}the words `{_QUESTION}`:",
            "",
            "```text",
            text,
            "```",
            "",
        ]

    def _notes(self) -> list[str]:
        tiling, notes = self.recipe.model.tiling, []
        if not self.has_processor:
            notes += [
                "There is no processor here: images have to be prepared as `model.tiling` of the recipe says.",
                "",
            ]
        elif tiling.kind == "dynamic" and tiling.max_tiles > 1:
            share = f'processor_kwargs={{"max_patches": max(1, {tiling.max_tiles} // number_of_images)}}'
            notes += [
                f"Several images of one conversation were trained to share {tiling.max_tiles} tiles. For these, add",
                "",
            ]
            notes += [f"    {share}", "", "to `apply_chat_template`.", ""]
        if self.has_adapter:
            notes += ["The weights are those of the base; what was trained is the LoRA adapter beside them.", ""]
        return notes

    @property
    def _reads_images(self) -> bool:
        return self.kind == "AutoModelForImageTextToText" and self.has_processor
