"""Chat: several turns, images with the next message, words as they come; nothing but answers in a pipe."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmjobs.data.example import BadPicture, BadRow
from mmjobs.model.build import build
from mmjobs.tasks import chat
from mmjobs.tasks.chat import Conversation
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.sampling import Sampling


@pytest.fixture
def conversation(tiny: Callable[..., Recipe]) -> Conversation:
    torch.manual_seed(0)
    built = build(tiny().model)
    built.network.requires_grad_(False).eval()
    return Conversation(built, Sampling(max_new_tokens=8, temperature=1.0), seed=3)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_an_answer_comes_in_pieces_and_is_remembered(conversation: Conversation, picture: Path) -> None:
    """The pieces are the answer; the same questions get the same answers; the turns before them count."""
    conversation.show(str(picture))
    pieces: list[str] = []
    first = conversation.ask("What is it?", pieces.append)
    assert "".join(pieces) == first and len(pieces) > 1
    second = conversation.ask("And now?", pieces.append)
    conversation.reset()
    alone = conversation.ask("And now?", pieces.append)
    conversation.reset()
    conversation.show(str(picture))
    assert [conversation.ask(text, pieces.append) for text in ("What is it?", "And now?")] == [first, second]
    assert alone != second


def test_what_cannot_be_asked(conversation: Conversation, tmp_path: Path) -> None:
    """A missing image and a conversation that is too long are told, and the conversation goes on."""
    with pytest.raises(BadPicture, match=r"nope\.png: no such file"):
        conversation.show(str(tmp_path / "nope.png"))
    before = conversation.ask("Hi", lambda _: None)
    with pytest.raises(BadRow, match="/reset begins a new one"):
        conversation.ask("word " * 100, lambda _: None)
    conversation.reset()
    assert conversation.ask("Hi", lambda _: None) == before


def test_an_answer_that_cannot_go_on_is_told(tiny: Callable[..., Recipe]) -> None:
    """A model whose logits are not finite for one word: without that word the conversation goes on."""
    built = build(tiny().model)
    (word,) = built.chat.tokenizer("~", add_special_tokens=False)["input_ids"]
    network: Any = built.network.requires_grad_(False)
    network.get_input_embeddings().weight[word] = torch.nan
    conversation = Conversation(built, Sampling(max_new_tokens=2), seed=3)
    with pytest.raises(BadRow, match="the logits of token 1 of an answer are not finite"):
        conversation.ask("~", lambda _: None)
    conversation.ask("Hi", lambda _: None)


def test_a_pipe_gets_nothing_but_answers(
    conversation: Conversation, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def answer(text: str, say: Any) -> str:
        asked.append(text)
        say(f"<{text}>")
        return text

    monkeypatch.setattr(conversation, "ask", answer)
    lines = f"Hi\n\n/image {picture}\nWhat is it?\n/reset\n/dance\n/image nope.png\nBye\n/quit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert chat.talk(conversation, "model") == 1, "two lines were mistakes"
    shown = capsys.readouterr()
    assert shown.out == "<Hi>\n<What is it?>\n<Bye>\n" and asked == ["Hi", "What is it?", "Bye"]
    assert "no command /dance" in shown.err and "nope.png: no such file" in shown.err
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    assert chat.talk(conversation, "model") == 0
