# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The teacher: a frozen image classifier of timm or transformers, whose outputs the student learns."""

import timm
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification


CLASSES_PER_POSITION = 16  # the most probable classes, which are kept for each position


class Teacher:
    """A frozen image classifier.

    Args:
        source: Folder or Hub id of transformers, or of timm as 'local-dir:...', 'hf-hub:...' or 'timm/...'.
        device: Device that computes the outputs.
    """

    def __init__(self, source: str, device: torch.device):
        self.is_timm = source.startswith(("local-dir:", "hf-hub:", "timm/"))
        if self.is_timm:
            model = timm.create_model(source.replace("timm/", "hf-hub:timm/", 1), pretrained=True).float()
            mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        else:
            model = AutoModelForImageClassification.from_pretrained(source, dtype=torch.float32)
            processor = AutoImageProcessor.from_pretrained(source)
            mean, std = processor.image_mean, processor.image_std
        self.model = model.eval().to(device, memory_format=torch.channels_last)
        self.mean, self.std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))

    @torch.inference_mode()
    def __call__(self, crops: Tensor) -> dict[str, Tensor]:
        """Computes the outputs for crops: floating-point numbers in float16, on the CPU.

        `logits` is `(batch, classes)`, and `map8`, `map16` and `map32` are the last maps of these strides, as far as
        the teacher has them, `(batch, channels, h, w)`. A timm teacher also classifies each position of its last map:
        `classes` and their `probabilities` are `(batch, classes per position, h, w)`, the most probable class first.

        Args:
            crops: Integers from 0 to 255, `(batch, 3, size, size)`.

        Raises:
            ValueError: An output is not finite in float16.
        """
        pixels = (crops.to(self.mean.device) / 255 - self.mean) / self.std
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if self.is_timm:
            last, maps = self.model.forward_intermediates(pixels)
            logits, positions = self.model.forward_head(last), self._classify_positions(last)
        else:
            output = self.model(pixels, output_hidden_states=True)
            logits, maps = output.logits, output.get("reshaped_hidden_states", output.hidden_states)
            positions = {}
        by_stride = {crops.shape[-1] // m.shape[-1]: m for m in maps if m.ndim == 4}  # the last map of a stride
        outputs = {f"map{stride}": by_stride[stride] for stride in (8, 16, 32) if stride in by_stride}
        outputs |= {"logits": logits} | positions
        outputs = {
            name: (output.half() if output.is_floating_point() else output).cpu().contiguous()
            for name, output in outputs.items()
        }
        if wrong := [name for name, output in outputs.items() if not output.isfinite().all()]:
            raise ValueError(f"The teacher's {wrong} hold numbers that are no finite float16. Choose another teacher.")
        return outputs

    def _classify_positions(self, last: Tensor) -> dict[str, Tensor]:
        rows = last.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]  # each position as a map of 1 x 1
        probabilities = self.model.forward_head(rows).softmax(-1)
        top = probabilities.topk(min(CLASSES_PER_POSITION, probabilities.shape[1]))
        shape = (len(last), *last.shape[2:], -1)
        return {
            "probabilities": top.values.view(shape).permute(0, 3, 1, 2),
            "classes": top.indices.view(shape).permute(0, 3, 1, 2).short(),
        }
