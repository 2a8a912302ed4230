# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The student: a small Swin, and the losses by which it learns the teacher's outputs."""

import argparse
import math
from functools import cache

import torch
from distillation.shards import Shard
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import normalize
from transformers import SwinConfig, SwinForImageClassification


LOGITS_WEIGHT = 0.1  # weight of the losses of logits and of positions; the loss of each map has weight 1


def make_student(arguments: argparse.Namespace, image_size: int, classes: int) -> SwinForImageClassification:
    """Loads or builds the student.

    Args:
        arguments: Arguments of pretrain_encoder.py.
        image_size: Side of the crops in pixels.
        classes: Number of the teacher's classes, or of the labels.

    Raises:
        ValueError: A window is larger than the last map of the crops, or the files do not have the weights of a Swin
            of four stages with patches of 4 px.
    """
    settings: dict = {"image_size": image_size, "num_labels": classes}
    settings |= dict.fromkeys(("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    model = load_student(arguments.student, settings) if arguments.student else build_student(arguments, settings)
    window = model.config.window_size
    if image_size < 32 * window:  # 32 is the stride of the last of four stages
        raise ValueError(
            f"The crops have {image_size} pixels; one window of {window} tokens needs {32 * window} to fit the last "
            "map. Lower --window, give another --student, or make larger crops in another --teacher_outputs folder."
        )
    return model


def load_student(source: str, settings: dict) -> SwinForImageClassification:
    """Loads a Swin; a classifier of another number of classes is left out.

    Raises:
        ValueError: The files do not have the weights of a Swin of four stages with patches of 4 px.
    """
    model, found = SwinForImageClassification.from_pretrained(
        source, **settings, ignore_mismatched_sizes=True, dtype=torch.float32, output_loading_info=True
    )
    random = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if wrong := sorted(name for name in random if not name.startswith("classifier.")):
        raise ValueError(
            f"--student {source}: the weights {wrong} are missing or have other shapes. Give a Swin whose weights do "
            "not depend on the size of the images."
        )
    patch, stages = model.config.patch_size, len(model.config.depths)
    if (patch, stages) != (4, 4):
        raise ValueError(
            f"--student {source} has patches of {patch} px and {stages} stages. Give a Swin with patches of 4 px and "
            "four stages."
        )
    return model.train()


def build_student(arguments: argparse.Namespace, settings: dict) -> SwinForImageClassification:
    """Builds a Swin whose heads start by attending to fixed offsets around a token, like a convolution."""
    model = SwinForImageClassification(
        SwinConfig(
            embed_dim=arguments.embed_dim,
            depths=arguments.depths,
            num_heads=arguments.heads,
            window_size=arguments.window,
            **settings,
        )
    )
    steps = torch.arange(1.0 - arguments.window, arguments.window)
    offsets = torch.cartesian_prod(steps, steps)
    for name, bias in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            angles = 2 * math.pi * (torch.arange(bias.shape[1]) + torch.rand(1)) / bias.shape[1]
            centres = 1.2 * torch.stack([angles.cos(), angles.sin()], -1)  # 1.2 tokens away
            bias.data.copy_(-0.8 * (offsets[:, None] - centres).square().sum(-1))
    return model


class Distillation(nn.Module):
    """The student, linear heads from its maps to the teacher's maps, and the losses.

    Each map of the student predicts the teacher's map of its stride and the upsampled map of the next stride. Channels
    are standardised by their mean and standard deviation over a shard. The maps of stride 16 and 32 also predict the
    classes of each position.

    Args:
        student: A Swin of four stages; its classifier has the teacher's classes.
        shard: The shard whose channels give the means and standard deviations.
        temperature: Temperature of the teacher's and the student's logits.
    """

    def __init__(self, student: SwinForImageClassification, shard: Shard, temperature: float):
        super().__init__()
        self.student, self.temperature = student, temperature
        width = student.config.embed_dim
        self.targets: dict[int, list[str]] = {}  # the teacher's maps that the student's map of a stride predicts
        self.heads = nn.ModuleDict()
        for name in sorted(name for name in shard if name.startswith("map")):
            stride = int(name.removeprefix("map"))
            self.targets[stride] = [target for target in (name, f"map{2 * stride}") if target in shard]
            channels = sum(shard[target].shape[1] for target in self.targets[stride])
            self.heads[str(stride)] = nn.Conv2d(width * stride // 4, channels, kernel_size=1)
            std, mean = torch.std_mean(shard[name].float(), (0, 2, 3), keepdim=True)
            self.register_buffer(f"std_{name}", std.clamp(min=1e-6), persistent=False)
            self.register_buffer(f"mean_{name}", mean, persistent=False)
        if "classes" in shard:
            self.classifier16 = nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, student.config.num_labels))

    def forward(self, batch: Shard, flip: Tensor) -> dict[str, Tensor]:
        """Returns the losses of crops, of which those in `flip`, `(crops,)`, are mirrored."""
        flip = flip.view(-1, 1, 1, 1)
        batch = batch | {k: torch.where(flip, v.flip(-1), v) for k, v in batch.items() if v.ndim == 4}
        pixels = normalize(batch["images"] / 255, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        output = self.student.swin(pixels, output_hidden_states=True, output_hidden_states_before_downsampling=True)
        maps = {pixels.shape[-1] // m.shape[-1]: m for m in output.reshaped_hidden_states}  # by stride
        losses = self.map_losses(maps, batch)
        if "classes" in batch:
            losses |= self.position_losses(maps, batch)
        logits = self.student.classifier(output.pooler_output)
        if "labels" in batch:
            return losses | {"labels": F.cross_entropy(logits, batch["labels"], label_smoothing=0.1)}
        prediction, target = (F.log_softmax(v.float() / self.temperature, -1) for v in (logits, batch["logits"]))
        divergence = F.kl_div(prediction, target, log_target=True, reduction="batchmean")
        return losses | {"logits": LOGITS_WEIGHT * self.temperature**2 * divergence}

    def map_losses(self, maps: dict[int, Tensor], batch: Shard) -> dict[str, Tensor]:
        """Returns the smooth L1 losses of the predicted maps, by the student's stride."""
        losses = {}
        for stride, names in self.targets.items():
            prediction, targets = self.heads[str(stride)](maps[stride]), []
            for name in names:
                std, mean = getattr(self, f"std_{name}"), getattr(self, f"mean_{name}")
                target = ((batch[name].float() - mean) / std).clamp(-6, 6)
                targets.append(F.interpolate(target, prediction.shape[-2:], mode="bilinear", antialias=True))
            losses[f"map{stride}"] = F.smooth_l1_loss(prediction, torch.cat(targets, 1))
        return losses

    def position_losses(self, maps: dict[int, Tensor], batch: Shard) -> dict[str, Tensor]:
        """Returns the cross-entropies of the classes at each position of the student's maps of stride 16 and 32.

        The teacher's probabilities are resized to the student's map. Applying the transposed resizing to the student's
        log probabilities gives the same sum, without the teacher's probabilities of all classes.
        """
        classes, probabilities = (batch[name].flatten(2).mT for name in ("classes", "probabilities"))
        classes, probabilities = classes.long(), probabilities.float()  # (batch, positions, classes per position)
        size = tuple(batch["classes"].shape[-2:])
        classifiers = {16: self.classifier16, 32: nn.Sequential(self.student.swin.layernorm, self.student.classifier)}
        losses = {}
        for stride, classifier in classifiers.items():
            prediction = F.log_softmax(classifier(maps[stride].flatten(2).mT), -1)  # (batch, positions, classes)
            resize = resizing_matrix(size, tuple(maps[stride].shape[-2:])).to(prediction)
            with torch.autocast(prediction.device.type, enabled=False):  # in float32, as all losses
                prediction = prediction / (resize @ probabilities.sum(-1, keepdim=True))
                chosen = (resize.T @ prediction).gather(-1, classes)
            # The losses in training.json have the names places16 and places32.
            losses[f"places{stride}"] = -LOGITS_WEIGHT * (probabilities * chosen).sum() / prediction[..., 0].numel()
        return losses


@cache
def resizing_matrix(size: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
    """Returns the matrix that resizes a flattened map from `size` to `target`, as `F.interpolate` does."""
    maps = torch.eye(math.prod(size)).view(-1, 1, *size)
    return F.interpolate(maps, target, mode="bilinear", antialias=True).flatten(1).T
