"""The vision memory: features of images that a frozen encoder has seen, for everything that looks at them again.

In reinforcement learning an image is looked at when answers are generated, scored, measured and learnt from. Each image
is encoded alone: its features depend neither on which images stand beside it, nor on whether they were remembered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mmjobs.model.checksum import checksum

Key = tuple[Any, ...]


class VisionMemory:
    """Shared by the networks of a process: encoders with equal weights share what they have seen."""

    def __init__(self) -> None:
        self._features: dict[Key, torch.Tensor] = {}
        self.encoded = 0
        """How many images were encoded, and not remembered."""

    def serve(self, network: Any) -> bool:
        """Let the encoder of a network remember; False where it cannot: it is trained, divided, or of another kind."""
        tower = getattr(getattr(network, "model", None), "vision_tower", None)
        layer = getattr(network.config, "vision_feature_layer", None)
        weights = list(tower.parameters()) if isinstance(tower, nn.Module) else []
        divided = any(hasattr(weight, "ds_tensor") for weight in weights)
        if type(tower) is not CLIPVisionModel or not isinstance(layer, int) or divided:
            return False
        if any(weight.requires_grad for weight in weights):
            return False
        owner: Any = tower
        owner.__class__ = _Remembering  # in its place: hooks and names stay
        owner.memory, owner.layer = self, layer
        owner.weights = None
        return True

    def features(self, tower: Any, pixels: torch.Tensor) -> torch.Tensor:
        """The hidden states of the layer that is projected, of one image: [1, 3, H, W] -> [1, T, D]"""
        if tower.weights is None:  # not before: a resumed run reads its weights when all models are built
            tower.weights = tuple(checksum(weight) for weight in tower.parameters())
        half = torch.is_autocast_enabled(pixels.device.type), next(tower.parameters()).dtype
        key = (tower.weights, tower.layer, half, pixels.dtype, tuple(pixels.shape), checksum(pixels))
        if key not in self._features:
            self.encoded += 1
            with torch.no_grad():
                self._features[key] = tower.encode(pixels)
        return self._features[key]

    def forget(self) -> None:
        """Drop everything."""
        self._features.clear()


class _Remembering(CLIPVisionModel):
    """An encoder that encodes each image once."""

    def forward(self, pixel_values: torch.Tensor, **options: Any) -> BaseModelOutputWithPooling:
        memory: Any = self.memory
        features = [memory.features(self, image[None]) for image in pixel_values]
        states = torch.cat(features)
        return BaseModelOutputWithPooling(last_hidden_state=states, hidden_states=_Layer(states))  # type: ignore[arg-type]  # read by one index only

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The hidden states of the layer that is projected; those behind it are not run: [N, 3, H, W] -> [N, T, D]"""
        own: Any = self
        states: torch.Tensor = own.pre_layrnorm(own.embeddings(pixel_values))
        layers = own.encoder.layers
        for layer in layers[: own.layer if own.layer >= 0 else len(layers) + 1 + own.layer]:
            states = layer(states, attention_mask=None)
        return states


class _Layer:
    """The hidden states of the one layer that is read."""

    def __init__(self, states: torch.Tensor) -> None:
        self._states = states

    def __getitem__(self, layer: int) -> torch.Tensor:
        return self._states
