# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys of the data and the weights that a run starts from, so that no other data or weights continue it."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn


_ROWS = 64  # that are read at once


def keys_of_inputs(data: Mapping[str, Dataset], encoder: nn.Module, decoders: nn.Module | None) -> dict[str, str]:
    """Returns a key of each input of a run, by a name for messages.

    Args:
        data: The splits by name.
        encoder: The pretrained encoder.
        decoders: The model whose decoders the run starts from, if any.
    """
    keys = {f"the data of the split {split}": key_of_data(rows) for split, rows in data.items()}
    keys["the weights of the encoder"] = key_of_weights(encoder)
    if decoders is not None:
        keys["the weights of the decoders"] = key_of_weights(decoders)
    return keys


def key_of_data(rows: Dataset) -> str:
    """Returns a key of everything that the rows hold: ids, images and labels as they are stored.

    The key does not depend on the files that hold the rows, nor on their parts.
    """
    digest = sha256()
    for table in rows.with_format("arrow").iter(_ROWS):
        copy = table.take(list(range(len(table))))  # without the offsets of a part of a larger table
        for batch in copy.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()[:16]


def key_of_weights(model: nn.Module) -> str:
    """Returns a key of the names and values of the parameters and buffers of a model."""
    return key_of_tensors(model.state_dict())


def key_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Returns a key of the names and values of tensors."""
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        values: Any = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(values)
    return digest.hexdigest()[:16]
