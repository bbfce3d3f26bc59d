"""Chat: a conversation with a model, which answers word by word."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmjobs.data.encode import Processor
from mmjobs.data.example import IMAGE, BadPicture, BadRow, Example, Origin, Picture, Slot, Turn
from mmjobs.data.images.image_file import FilePicture
from mmjobs.model.build import BuiltModel
from mmjobs.model.generate import Generated, Vocabulary, answer_text, generate, not_finite
from mmjobs.model.restore import opened
from mmjobs.model.sampling import Draws
from mmlaunch.errors import MmlaunchError
from mmlaunch.recipe.requirements import Requirements
from mmlaunch.recipe.sampling import Sampling

HELP = """\
/image FILE   show an image with your next message; again for several
/reset        begin a new conversation
/help         this
/quit         leave; Ctrl-D does as well. Ctrl-C stops an answer."""
_UNFINISHED = "\ufffd"
"""What a letter decodes to of which some bytes are still to come."""


class Stopped(Exception):
    """The user has stopped an answer."""


class Conversation:
    """The turns so far, and what the user shows next."""

    def __init__(self, built: BuiltModel, sampling: Sampling, seed: int, system: str | None = None) -> None:
        nothing = Requirements(least=0, most=0, prompts=False)
        self._built, self._sampling, self._seed = built, sampling, seed
        self._processor = Processor(built.chat, built.pixels, built.positions, requirements=nothing)
        self._vocabulary = Vocabulary(built.network, built.chat, sampling)
        self._system = [Turn("system", (system,))] if system else []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system's words."""
        self._turns, self._images = list(self._system), list[Picture]()
        self._shown: list[Picture] = []

    def show(self, path: str) -> None:
        """Show an image with the next message; raises `BadPicture`."""
        picture = FilePicture.at(str(Path(path).expanduser()), ".", fenced=False)
        picture.size()
        self._shown.append(picture)

    def ask(self, text: str, say: Callable[[str], None]) -> str:
        """The answer to a message; `say` gets its pieces as they come. Raises `BadRow` where it cannot be asked."""
        content: list[str | Slot] = [*[IMAGE] * len(self._shown), text]
        turns = [*self._turns, Turn("user", tuple(content))]
        images = [*self._images, *self._shown]
        example = Example(tuple(images), tuple(turns), (), Origin("chat", len(turns)))
        prompt = self._processor.encode(example)
        space = self._built.positions - len(prompt.prompt)
        if space < 1:
            what = f"the conversation has {len(prompt.prompt)} tokens, and the model reads {self._built.positions}"
            raise BadRow(example.origin, f"{what}; /reset begins a new one")
        answer = self._answer(prompt, min(space, self._sampling.max_new_tokens), len(turns), say)
        self._turns, self._images, self._shown = [*turns, Turn("assistant", (answer,))], images, []
        return answer

    def _answer(self, prompt: Any, longest: int, turn: int, say: Callable[[str], None]) -> str:
        sampling = self._sampling.model_copy(update={"max_new_tokens": longest, "answers": 1})
        growing = Generated()
        told = 0

        def stream(_: int, token: int) -> None:
            nonlocal told
            growing.ids.append(token)
            growing.ended = token in self._vocabulary.stops
            text = answer_text(self._built.chat, growing)
            if not text.endswith(_UNFINISHED):
                say(text[told:])
                told = len(text)

        chat = self._built.chat
        draws, padding = [Draws(self._seed, turn, 0)], chat.tokenizer.pad_token_id
        try:
            (answer,) = generate(
                self._built.network, [prompt], draws, self._vocabulary, sampling, self._processor.pixels, padding,
                stream=stream,
            )  # fmt: skip
            if not answer.finite:
                raise BadRow(prompt.origin, not_finite(answer))
        except Stopped:
            say(" ...")
        text = answer_text(chat, growing)
        say(text[told:])
        return text


@contextmanager
def _stoppable() -> Iterator[None]:
    """In this context Ctrl-C raises `Stopped`."""

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def talk(conversation: Conversation, name: str) -> int:
    """Read messages until there are no more; in a pipe nothing but the answers is written to standard output."""
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"{name}\n/help lists the commands", file=sys.stderr)
    failures = 0
    while (line := _read(terminal)) is not None:
        command, _, rest = line.strip().partition(" ")
        if command in ("/quit", "/exit"):
            break
        try:
            if command == "/image":
                conversation.show(rest.strip())
            elif command == "/reset":
                conversation.reset()
            elif command == "/help":
                print(HELP, file=sys.stderr)
            elif command.startswith("/") and command[1:].isalpha():
                print(f"no command {command}\n{HELP}", file=sys.stderr)
                failures += 1
            elif line.strip():
                with _stoppable():
                    conversation.ask(line.strip(), _say)
                print(flush=True)
        except (BadPicture, BadRow) as error:
            print(f"error: {error.what if isinstance(error, BadRow) else error}", file=sys.stderr)
            failures += 1
    return 1 if failures and not terminal else 0


def _read(terminal: bool) -> str | None:
    """The next message; None when there are no more."""
    try:
        return input("> " if terminal else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return None


def _say(text: str) -> None:
    print(text, end="", flush=True)


def main() -> int:
    """`python -m mmjobs.tasks.chat MODEL`, which `mmlaunch chat` calls."""
    parser = argparse.ArgumentParser(prog="mmlaunch chat")
    parser.add_argument("model")
    parser.add_argument("--image", action="append", default=[])
    parser.add_argument("--system")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sampling = Sampling(
        temperature=given.temperature, top_p=given.top_p, top_k=given.top_k, max_new_tokens=given.max_new_tokens
    )
    try:
        conversation = Conversation(opened(given.model), sampling, given.seed, given.system)
        for path in given.image:
            conversation.show(path)
    except (MmlaunchError, BadPicture, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return talk(conversation, given.model)


if __name__ == "__main__":
    sys.exit(main())
