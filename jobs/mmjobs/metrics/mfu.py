"""MFU: the floating point operations that a step needs, as a share of what the device can do at its peak."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmjobs.data.batch import Batch
from mmjobs.model.quantised import numbers
from mmjobs.model.sharded import shape
from mmlaunch.recipe.parts import PARTS, part_of

_PEAKS = {
    r"\bA100\b": 312e12,
    r"\bH100 80GB HBM3\b": 989e12,
    r"\bH100 PCIe\b": 756e12,
    r"\bG?H200\b(?! NVL)": 989e12,
    r"\bL40S\b": 362e12,
    r"\bA40\b": 149.7e12,
    r"\bV100\b": 125e12,
}
"""Dense peaks of half precision, from NVIDIA's data sheets. A device that is not here has no MFU: never a guess."""
_WITHOUT_BF16 = r"\bV100\b"
_LAST = "last"


def peak(device: str, precision: str) -> float | None:
    """FLOP per second of a device of this name, where they are known; a slice of one (MIG) is another device."""
    if precision == "fp32" or " MIG " in device or (precision == "bf16" and re.search(_WITHOUT_BF16, device)):
        return None
    return next((value for name, value in _PEAKS.items() if re.search(name, device)), None)


@dataclass(frozen=True)
class ModelFlops:
    """The FLOP of a token, a patch and an answer's token in a model, forward and backward.

    A matrix of n weights is 2n FLOP forward, 2n for the gradient of its input where anything before it is trained, and
    2n for its own where it is trained itself. Recomputation to save memory, and padding, do not count.
    """

    rows: dict[str, float]
    """FLOP for each row of vision (a patch), projector (an image token), language (a token), what follows the last
    attention (a token that is read) and embeddings (the head, an answer's token)."""
    squares: float
    """FLOP of causal attention for the square of a sequence's length."""
    kernel: int
    """Numbers in a patch; 0 without a vision encoder."""
    image_token: int
    peak: float
    """FLOP per second that the device can do at best."""

    @classmethod
    def of(cls, network: Any, peak: float) -> ModelFlops:
        """The FLOP of a network whose modules stand in the order in which they run."""
        rows, kernel, trained = dict.fromkeys((*PARTS, _LAST), 0.0), 0, False
        last = set(getattr(network.get_decoder().layers[-1], "mlp", nn.Identity()).modules())
        for path, module in network.named_modules():
            own = list(module.parameters(recurse=False))
            trained = trained or any(parameter.requires_grad for parameter in own)
            if not isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
                continue
            size = shape(module.weight)
            part = _LAST if module in last else part_of(f"{path}.weight")
            rows[part] += 2.0 * numbers(module.weight) * (1 + trained + module.weight.requires_grad)
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                kernel = kernel or size[1:].numel()
        text = network.config.get_text_config()
        heads = text.num_attention_heads
        wide = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
        squares = 2.0 * text.num_hidden_layers * wide * (1 + 2 * trained)
        return cls(rows, squares, kernel, getattr(network.config, "image_token_id", -1), peak)

    def flop(self, batch: Batch) -> float:
        """The FLOP of one batch of this rank."""
        pixels = batch.image_inputs.get("pixel_values")
        read = len(batch.answers) if self.rows["head"] else int(batch.loss_mask.sum())
        counts = {
            "vision": pixels.numel() // self.kernel if pixels is not None and self.kernel else 0,
            "projector": int((batch.ids == self.image_token).sum()),
            "language": batch.tokens,
            _LAST: read,
            "embeddings": 0 if self.rows["head"] else read,
            "head": read,
        }
        attention = self.squares * batch.squares
        return sum(self.rows[part] * count for part, count in counts.items()) + attention


def model_flops(network: Any, precision: str) -> ModelFlops | None:
    """The FLOP of this network; None where the peak of this rank's device is not known."""
    known = peak(torch.cuda.get_device_name(), precision) if torch.cuda.is_available() else None
    return ModelFlops.of(network, known) if known else None
