"""TensorBoard: the curves of a run, continuous over all its attempts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmjobs.metrics import event_files


@dataclass(frozen=True)
class Sample:
    """One held-out question and what the model says."""

    question: str
    truth: str
    answer: str
    pixels: torch.Tensor  # [N, 3, H, W], from 0 to 1


class TensorBoardWriter:
    """Writes on rank 0, when the recipe asks for it; elsewhere it does nothing."""

    def __init__(
        self, folder: Path, wanted: bool, resumed: int, again: bool = False, warn: Callable[[str], None] = print
    ) -> None:
        """`resumed`: the last step that is not done again; `again`: it is evaluated a second time. `warn` is told when
        the curves end before the run."""
        self._warn = warn
        self._writer: Any = None
        if wanted:
            from torch.utils.tensorboard import SummaryWriter  # seconds that the other ranks need not wait

            event_files.cut(folder, resumed, again)
            # A TensorBoard that looks on has read them already. The mark makes it forget them: not the first mark that
            # it meets, but each one after that, so that an attempt from the beginning leaves one as well.
            self._writer = SummaryWriter(str(folder), purge_step=resumed + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point on each curve."""
        for name, value in values.items():
            self._write("add_scalar", name, value, step)

    def samples(self, samples: Sequence[Sample], step: int) -> None:
        """Generated answers with their images."""
        for number, sample in enumerate(samples):
            text = f"{sample.question}\n\n**truth** {sample.truth}\n\n**answer** {sample.answer}"
            self._write("add_text", f"samples/{number}", text, step)
            for image in sample.pixels:
                self._write("add_image", f"samples/{number}", image.mul(255).to(torch.uint8), step)

    def flush(self) -> None:
        self._write("flush")

    def _write(self, method: str, *arguments: Any) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*arguments)
        except OSError as error:  # curves are a convenience: their disk ends them, not the run
            self._writer = None
            self._warn(f"the curves end here: {error}; the next attempt goes on with them")
