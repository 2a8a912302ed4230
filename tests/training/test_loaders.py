# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

from peft_polyhistor.training.loaders import rest_of_epoch


@pytest.fixture
def read():
    """`read(epoch, done)`: the images of each step of the rest of an epoch."""
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))

    def make(epoch, done):
        torch.manual_seed(0)
        loader = accelerator.prepare(DataLoader(torch.arange(12), batch_size=2, shuffle=True))
        return [torch.cat(group).tolist() for group in rest_of_epoch(loader, epoch, done, 2, accelerator)]

    return make


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_the_rest_of_an_epoch_has_the_images_that_are_left_in_the_order_of_the_epoch(epoch, read):
    whole = read(epoch, 0)
    assert sorted(image for step in whole for image in step) == list(range(12))
    assert [read(epoch, done) for done in (1, 2)] == [whole[1:], whole[2:]]


def test_each_epoch_has_an_order_of_its_own(read):
    assert len({str(read(epoch, 0)) for epoch in range(3)}) == 3
