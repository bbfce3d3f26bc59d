"""Samples as the model reads them: every token, the loss mask, the exact pixels; and a page that shows them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from PIL import Image

from mmjobs.data.encode import Processor
from mmjobs.data.example import Example
from mmlaunch.recipe.requirements import Requirements

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
section { border-top: 2px solid #888; margin-top: 2rem; }
.tokens { white-space: pre-wrap; font-family: ui-monospace, monospace; background: #f6f6f6; padding: .6rem; }
.in_loss { background: #b7e3b0; } .special { color: #9a3412; font-weight: 600; } .images { color: #1d4ed8; }
.tokens { overflow-wrap: anywhere; } .wide { overflow-x: auto; } h1, h2 { overflow-wrap: anywhere; }
.chosen, .rejected { border-left: .4rem solid; padding-left: .6rem; }
.chosen { border-color: #15803d; } .rejected { border-color: #b91c1c; }
img { max-width: 100%; height: 8rem; object-fit: contain; image-rendering: pixelated; margin: .2rem; }
img { border: 1px solid #ccc; }
"""


PAIR = ("chosen", "rejected")


@dataclass(frozen=True)
class Piece:
    """Adjacent tokens of the same kind."""

    text: str
    in_loss: bool
    kind: str
    """`text`, `special` or `images`."""


@dataclass(frozen=True)
class Sample:
    """One example as the model gets it."""

    origin: str
    prompt: list[Piece]
    answers: list[list[Piece]]
    scores: list[float | None]
    names: list[str]
    """What the objective takes each answer for: chosen, rejected, a rank."""
    pictures: torch.Tensor  # [N, 3, H, W], from 0 to 1

    def facts(self) -> dict[str, Any]:
        """For a terminal: the texts with their masks."""
        return {
            "origin": self.origin,
            "prompt": _as_lists(self.prompt),
            "answers": [_as_lists(answer) for answer in self.answers],
            "scores": self.scores,
            "names": self.names,
            "pictures": list(self.pictures.shape),
        }


def _as_lists(pieces: Sequence[Piece]) -> list[tuple[str, bool, str]]:
    return [(piece.text, piece.in_loss, piece.kind) for piece in pieces]


def sample(processor: Processor, example: Example, budget: int | None) -> Sample:
    """Encode one example and decode its tokens."""
    encoded = processor.encode(example, budget)
    return Sample(
        origin=str(example.origin),
        prompt=_pieces(processor, encoded.prompt.ids, encoded.prompt.loss_mask),
        answers=[_pieces(processor, answer.ids, answer.loss_mask) for answer in encoded.answers],
        scores=list(encoded.scores),
        names=_names(processor.requirements, len(encoded.answers)),
        pictures=processor.pixels.visible(encoded.image_inputs),
    )


def _names(requirements: Requirements, count: int) -> list[str]:
    """What the objective takes each answer for."""
    if requirements.least == requirements.most == count == 2:
        return list(PAIR)
    if requirements.least > 1 and count > 1:
        return [f"rank {number}" for number in range(1, count + 1)]
    return [f"answer {number}" for number in range(1, count + 1)]


def _pieces(processor: Processor, ids: Sequence[int], loss_mask: Sequence[bool]) -> list[Piece]:
    tokenizer, image = processor.chat.tokenizer, processor.chat.image_id
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}

    def kind(place: int) -> tuple[str, bool]:
        token = ids[place]
        return ("images" if token == image else "special" if token in special else "text"), loss_mask[place]

    pieces = []
    for (what, mask), places in groupby(range(len(ids)), kind):
        run = [ids[place] for place in places]
        text = f"{processor.chat.image_token} x {len(run)}" if what == "images" else str(tokenizer.decode(run))
        pieces.append(Piece(text, mask, what))
    return pieces


def page_of(name: str, result: dict[str, Any], samples: Sequence[Sample]) -> str:
    """One file that opens in any browser, pictures inside."""
    title = html.escape(f"{name}: what the model sees")
    rows = [
        f"<tr><td>{html.escape(part['name'])}</td><td>{group}</td><td>{part['rows']:,}</td><td>{part['usable']:,}</td>"
        f"<td>{_numbers(part['tokens'])}</td><td>{_numbers(part['width'])}</td><td>{_numbers(part['height'])}</td></tr>"
        for group, parts in result["groups"].items()
        for part in parts
    ]
    head = (
        "<tr><th>source</th><th>for</th><th>rows</th><th>usable</th><th>tokens</th><th>width</th><th>height</th></tr>"
    )
    body = "".join(_section(one) for one in samples)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p>Numbers are least / median / 99th percentile / most.</p>"
        f"<div class=wide><table>{head}{''.join(rows)}</table></div>"
        "<p>Tokens in the loss are <span class=in_loss>green</span>, special ones <span class=special>brown</span>.</p>"
        f"{body}</html>\n"
    )


def _section(one: Sample) -> str:
    pictures = "".join(f'<img alt="what the model sees" src="{_png(picture)}">' for picture in one.pictures)
    answers = ""
    for name, answer, score in zip(one.names, one.answers, one.scores, strict=True):
        scored = f", score {score:g}" if score is not None else ""
        kind = name if name in PAIR else "answer"
        answers += f"<div class={kind}><h3>{name}{scored}</h3><div class=tokens>{_marked(answer)}</div></div>"
    return (
        f"<section><h2>{html.escape(one.origin)}</h2>{pictures}<h3>prompt</h3>"
        f"<div class=tokens>{_marked(one.prompt)}</div>{answers}</section>"
    )


def _marked(pieces: Sequence[Piece]) -> str:
    return "".join(
        f'<span class="{piece.kind}{" in_loss" if piece.in_loss else ""}">{html.escape(piece.text)}</span>'
        for piece in pieces
    )


def _numbers(summary: dict[str, int] | None) -> str:
    return " / ".join(f"{summary[key]:,}" for key in ("min", "median", "p99", "max")) if summary else "-"


def _png(picture: torch.Tensor) -> str:
    levels = picture.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()  # [H, W, 3]
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
