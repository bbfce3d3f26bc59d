"""What a worker sends arrives as it was, in one piece of memory."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass

import pytest
import torch

from mmjobs.data.transfer import ALIGNED, Packing


@dataclass(frozen=True)
class Nested:
    tensor: torch.Tensor
    others: dict[str, torch.Tensor | None]
    text: str


TENSORS = {
    "float": torch.randn(3, 5), "half": torch.randn(7).bfloat16(), "ids": torch.arange(11), "mask": torch.arange(5) > 2,
    "number": torch.tensor(3.5), "empty": torch.empty(0, 4), "turned": torch.randn(4, 6).t(),
    "part": torch.arange(9)[2:7], "complex": torch.randn(3, dtype=torch.complex64),
    "bytes": torch.arange(3, dtype=torch.uint8),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_arrives(name: str) -> None:
    made = Packing(lambda given: Nested(TENSORS[given], {"a": TENSORS["ids"], "b": None}, "text"))(name)
    back = pickle.loads(pickle.dumps(made)).open()
    assert torch.equal(back.tensor, TENSORS[name]) and back.tensor.dtype == TENSORS[name].dtype
    assert back.tensor.shape == TENSORS[name].shape and back.tensor.is_contiguous()
    assert torch.equal(back.others["a"], TENSORS["ids"]) and back.others["b"] is None and back.text == "text"


def test_all_of_them_in_one_tensor() -> None:
    parcel = Packing(lambda _: TENSORS)(None)
    assert parcel.tensors.ndim == 1 and len(parcel.tensors) % ALIGNED == 0
    back = parcel.open()
    assert all(torch.equal(back[name], value) for name, value in TENSORS.items())
    torch.save(back, io.BytesIO())  # it refuses tensors of several types that share their memory
