# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Pretrains a small Swin on what a teacher answers to crops of photographs.

    accelerate launch recipes/pretrain_encoder.py --data FOLDER=3 OTHER=1 --teacher timm/tf_efficientnet_lite2.in1k \
        --answers runs/answers --output-dir runs/pretraining

First the teacher answers: the crops of a shard, its logits and its last maps of stride 8, 16 and 32 become one file of
`--answers`. A teacher of timm also classifies every place of its last map ("token labelling", arXiv:2104.10858). The
teacher works once for every crop, whatever learns from it and for how long ("fast knowledge distillation",
arXiv:2112.01528). A larger `--shards` adds to those there are, and without `--data` none are made. Without `--teacher`
the answers are the column `label`.

Then the student learns. `runs/pretraining/encoder` holds the best one so far in float16, with its settings and losses.
A run that was interrupted goes on from its last save. With `--decay-steps 0` the learning rate stays up after the
warm-up, and more `--steps` make the run longer; a run with `--start-from` branches off such a run and lets the rate
fall. `--steps 0` only makes answers.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset, Image, load_dataset
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import normalize, pil_to_tensor, resize
from tqdm.auto import trange
from transformers import AutoImageProcessor, AutoModelForImageClassification, SwinConfig, SwinForImageClassification


BICUBIC = InterpolationMode.BICUBIC
PLACE_CLASSES = 16  # the most probable ones, which are kept of every place
LOGITS_WEIGHT = 0.1  # of their divergence, also at every place, beside 1 for the error on each map
Shard = dict[str, Tensor]  # images, and labels or the teacher's answers: the first axis is the crop


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True, help="folder of the shards; the first one validates")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument(
        "--data",
        default=[],
        nargs="+",
        metavar="FOLDER[=SHARE]",
        help="photographs: train*.parquet with the column `image`, or an image folder; its share of the crops",
    )
    parser.add_argument("--teacher", help="folder or Hub id of transformers; of timm as 'local-dir:...' or 'timm/...'")
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--shard-size", type=int, default=512, help="crops of a shard, about 170 KB each")
    parser.add_argument("--teacher-size", type=int, default=192, help="pixels of a crop as the teacher sees it")
    parser.add_argument("--image-size", type=int, default=128, help="pixels of a crop as it is written")
    parser.add_argument("--smallest-crop", type=float, default=0.25, help="its share of the photograph's area")
    parser.add_argument("--teacher-batch-size", type=int, default=16)
    parser.add_argument("--start-from", type=Path, help="output folder of a run to branch off")
    parser.add_argument("--embed-dim", type=int, default=32, help="channels of the first stage")
    parser.add_argument("--depths", type=int, nargs=4, default=[2, 2, 4, 2])
    parser.add_argument("--heads", type=int, nargs=4, default=[2, 4, 8, 16])
    parser.add_argument("--window", type=int, default=4, help="window size, tokens")
    parser.add_argument("--steps", type=int, default=20_000, help="0 only makes answers")
    parser.add_argument("--warmup-steps", type=int, default=300)
    parser.add_argument("--decay-steps", type=int, default=4_000, help="last steps, in which the rate falls to 0")
    parser.add_argument("--batch-size", type=int, default=32, help="of the student, per process")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--temperature", type=float, default=1.0, help="of the teacher's and the student's logits")
    parser.add_argument("--save-minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    at_least_one = "embed_dim", "window", "batch_size", "shards", "shard_size", "teacher_size", "image_size"
    for name in (*at_least_one, "teacher_batch_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}.")
    return arguments


def load_photographs(source: str, columns: list[str]) -> Dataset:
    """The photographs to train on in one folder.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: A column is missing.
    """
    if not Path(source).is_dir():
        raise FileNotFoundError(f"--data {source}: no such folder. Give FOLDER or FOLDER=SHARE.")
    files = sorted(str(path) for path in Path(source).glob("train*.parquet"))
    data = load_dataset("parquet", data_files=files) if files else load_dataset("imagefolder", data_dir=source)
    if missing := sorted(set(columns) - set(data["train"].column_names)):
        raise ValueError(f"'{source}' lacks the columns {missing}; it has {data['train'].column_names}.")
    return data["train"].select_columns(columns).cast_column("image", Image(mode="RGB"))


def split_shares(sources: list[str]) -> dict[str, float]:
    """The share of each folder, which is in proportion to the numbers given; 1 where there is none.

    Raises:
        ValueError: A share is no number above 0.
    """
    shares = {}
    for source in sources:
        folder, _, share = source.partition("=")
        try:
            shares[folder] = float(share or 1)
        except ValueError:
            shares[folder] = 0.0
        if not 0 < shares[folder] < float("inf"):
            raise ValueError(f"--data {source}: '{share}' is no share. Give a number above 0, e.g. {folder}=2.")
    return {folder: share / sum(shares.values()) for folder, share in shares.items()}


class Teacher:
    """A frozen classifier of timm or transformers."""

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
        """The logits, the last map of each stride and the classes of the places of the last one, in float16.

        Args:
            crops: Integers from 0 to 255, of shape (batch, 3, size, size).

        Raises:
            ValueError: An answer does not fit float16.
        """
        pixels = (crops.to(self.mean.device) / 255 - self.mean) / self.std
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        places = {}
        if self.is_timm:
            last, maps = self.model.forward_intermediates(pixels)
            logits = self.model.forward_head(last)
            rows = last.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]  # every place as a map of its own
            top = self.model.forward_head(rows).softmax(-1).topk(min(PLACE_CLASSES, logits.shape[1]))
            shape = (len(last), *last.shape[2:], -1)
            places["probabilities"] = top.values.view(shape).permute(0, 3, 1, 2)
            places["classes"] = top.indices.view(shape).permute(0, 3, 1, 2).short()
        else:
            output = self.model(pixels, output_hidden_states=True)
            logits, maps = output.logits, output.get("reshaped_hidden_states", output.hidden_states)
        by_stride = {crops.shape[-1] // m.shape[-1]: m for m in maps if m.ndim == 4}  # the last one of each stays
        answers = {f"map{stride}": by_stride[stride] for stride in (8, 16, 32) if stride in by_stride}
        answers |= {"logits": logits} | places
        answers = {
            name: (answer.half() if answer.is_floating_point() else answer).cpu().contiguous()
            for name, answer in answers.items()
        }
        if wrong := [name for name, answer in answers.items() if not answer.isfinite().all()]:
            raise ValueError(f"The teacher's {wrong} hold numbers that are no finite float16. Choose another teacher.")
        return answers


def make_shard(number: int, data: list[Dataset], shares: list[float], teacher: Teacher | None, arguments):
    """The crops of a shard, which depend on its number alone, and their answers."""
    torch.manual_seed(number)  # for the crops
    rng = np.random.default_rng(number)
    chosen = [data[folder] for folder in rng.choice(len(data), arguments.shard_size, p=shares)]
    rows = [photographs[int(rng.integers(len(photographs)))] for photographs in chosen]
    crop = RandomResizedCrop(arguments.teacher_size, (arguments.smallest_crop, 1), interpolation=BICUBIC)
    crops = [crop(row["image"]) for row in rows]
    small = [pil_to_tensor(resize(image, [arguments.image_size] * 2, BICUBIC)) for image in crops]
    if teacher is None:
        return {"images": torch.stack(small), "labels": torch.tensor([row["label"] for row in rows])}
    batches = torch.stack([pil_to_tensor(image) for image in crops]).split(arguments.teacher_batch_size)
    answers = [teacher(batch) for batch in batches]
    return {"images": torch.stack(small)} | {name: torch.cat([a[name] for a in answers]) for name in answers[0]}


def make_answers(arguments: argparse.Namespace, device: torch.device) -> None:
    """Writes the shards that are missing."""
    shares = split_shares(arguments.data)
    columns = ["image"] if arguments.teacher else ["image", "label"]
    data = [load_photographs(folder, columns) for folder in shares]
    teacher = Teacher(arguments.teacher, device) if arguments.teacher else None
    arguments.answers.mkdir(parents=True, exist_ok=True)
    for number in trange(arguments.shards, desc="shards"):
        file = arguments.answers / f"{number:05}.safetensors"
        if not file.exists():
            save_file(make_shard(number, data, list(shares.values()), teacher, arguments), f"{file}.part")
            os.replace(f"{file}.part", file)


def load_shards(folder: Path, window: int) -> list[Shard]:
    """The shards as maps of their files, of which only what is used is read.

    Raises:
        FileNotFoundError: There are fewer than two.
        ValueError: The crops are too small.
    """
    files = sorted(folder.glob("*.safetensors"))
    if len(files) < 2:
        raise FileNotFoundError(f"--answers {folder}: {len(files)} shards. Make two or more with --data.")
    shards = [load_file(file) for file in files]
    size = shards[0]["images"].shape[-1]
    if size < 32 * window:  # 32 is the stride of the last of four stages
        raise ValueError(
            f"The crops have {size} pixels; one window needs 32 * --window = {32 * window} to fit the last map. Lower "
            "--window or make larger crops."
        )
    return shards


def make_student(arguments: argparse.Namespace, image_size: int, classes: int) -> SwinForImageClassification:
    """A Swin whose heads look to fixed places around a token at first, like the taps of a convolution."""
    model = SwinForImageClassification(
        SwinConfig(
            image_size=image_size,
            embed_dim=arguments.embed_dim,
            depths=arguments.depths,
            num_heads=arguments.heads,
            window_size=arguments.window,
            drop_path_rate=0.0,
            num_labels=classes,
        )
    )
    offsets = torch.arange(1.0 - arguments.window, arguments.window)
    places = torch.cartesian_prod(offsets, offsets)
    for name, bias in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            angles = 2 * math.pi * (torch.arange(bias.shape[1]) + torch.rand(1)) / bias.shape[1]
            taps = 1.2 * torch.stack([angles.cos(), angles.sin()], -1)  # 1.2 tokens away
            bias.data.copy_(-0.8 * (places[:, None] - taps).square().sum(-1))
    return model


class Lesson(nn.Module):
    """The student, linear heads from its maps to the teacher's, and the losses.

    A map of the student learns the teacher's of its stride and, enlarged, of the next one, each channel normalised by
    its mean and deviation over the first shard. The maps of stride 16 and 32 also learn the classes of every place.
    """

    def __init__(self, arguments: argparse.Namespace, shard: Shard, classes: int):
        super().__init__()
        self.student = make_student(arguments, shard["images"].shape[-1], classes)
        self.temperature = arguments.temperature
        self.asked: dict[int, list[str]] = {}  # by the student's stride
        self.heads = nn.ModuleDict()
        for name in sorted(name for name in shard if name.startswith("map")):
            stride = int(name.removeprefix("map"))
            self.asked[stride] = [k for k in (name, f"map{2 * stride}") if k in shard]
            channels = sum(shard[k].shape[1] for k in self.asked[stride])
            self.heads[str(stride)] = nn.Conv2d(arguments.embed_dim * stride // 4, channels, kernel_size=1)
            std, mean = torch.std_mean(shard[name].float(), (0, 2, 3), keepdim=True)
            self.register_buffer(f"norm_{name}", torch.stack([std.clamp(min=1e-6), mean]), persistent=False)
        self.has_places = "classes" in shard
        if self.has_places:
            width = 4 * arguments.embed_dim
            self.classifier16 = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, shard: Shard, flip: Tensor) -> dict[str, Tensor]:
        flipped = {k: torch.where(flip.view(-1, 1, 1, 1), v.flip(-1), v) for k, v in shard.items() if v.ndim == 4}
        pixels = normalize(flipped["images"] / 255, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        output = self.student.swin(pixels, output_hidden_states=True, output_hidden_states_before_downsampling=True)
        maps = {pixels.shape[-1] // m.shape[-1]: m for m in output.reshaped_hidden_states}
        losses = {}
        for stride, names in self.asked.items():
            given, asked = self.heads[str(stride)](maps[stride]), []
            for name in names:
                std, mean = getattr(self, f"norm_{name}")
                answer = ((flipped[name].float() - mean) / std).clamp(-6, 6)
                asked.append(F.interpolate(answer, given.shape[-2:], mode="bilinear", antialias=True))
            losses[f"map{stride}"] = F.smooth_l1_loss(given, torch.cat(asked, 1))
        losses |= self.classify_places(maps, flipped) if self.has_places else {}
        logits = self.student.classifier(output.pooler_output)
        if "labels" in shard:
            return losses | {"labels": F.cross_entropy(logits, shard["labels"], label_smoothing=0.1)}
        given, asked = (F.log_softmax(v.float() / self.temperature, -1) for v in (logits, shard["logits"]))
        divergence = F.kl_div(given, asked, log_target=True, reduction="batchmean")
        return losses | {"logits": LOGITS_WEIGHT * self.temperature**2 * divergence}

    def classify_places(self, maps: dict[int, Tensor], flipped: Shard) -> dict[str, Tensor]:
        """Cross-entropy of the classes at every place of the student's maps of stride 16 and 32."""
        classes, probabilities = flipped["classes"].long(), flipped["probabilities"].float()
        asked = probabilities.new_zeros(len(classes), self.student.config.num_labels, *classes.shape[2:])
        asked.scatter_(1, classes, probabilities)
        classifiers = {16: self.classifier16, 32: nn.Sequential(self.student.swin.layernorm, self.student.classifier)}
        losses = {}
        for stride, classifier in classifiers.items():
            given = F.log_softmax(classifier(maps[stride].movedim(1, -1)), -1).movedim(-1, 1)
            places = F.interpolate(asked, given.shape[-2:], mode="bilinear", antialias=True)
            places = places / places.sum(1, keepdim=True)
            losses[f"places{stride}"] = LOGITS_WEIGHT * -(places * given).sum(1).mean()
        return losses


@torch.inference_mode()
def validate(lesson: Lesson, shard: Shard, batch_size: int) -> dict[str, float]:
    device = next(lesson.parameters()).device
    lesson.eval()
    batches = zip(*(answers.to(device).split(batch_size) for answers in shard.values()), strict=True)
    plain = [lesson(dict(zip(shard, b, strict=True)), torch.zeros(len(b[0]), device=device).bool()) for b in batches]
    lesson.train()
    return {name: round(sum(losses[name].item() for losses in plain) / len(plain), 4) for name in plain[0]}


def write(folder: Path, save: Callable[[Path], object]) -> None:
    """Moves what `save` writes to `folder` once it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as fresh:
        save(Path(fresh))
        for file in Path(fresh).iterdir():
            os.replace(file, folder / file.name)


def save(arguments: argparse.Namespace, lesson: Lesson, optimizer, progress: dict, losses: dict[str, float]) -> None:
    """Writes the state of the run and, if it is the best so far, the student."""
    is_best = sum(losses.values()) < progress["best"]
    progress["best"] = min(sum(losses.values()), progress["best"])
    state = {"lesson": lesson.state_dict(), "optimizer": optimizer.state_dict(), "progress": progress}
    write(arguments.output_dir, lambda folder: torch.save(state, folder / "state.pt"))
    settings = {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)}

    def save_student(folder: Path) -> None:
        weights = {name: weight.half() for name, weight in lesson.student.state_dict().items()}
        lesson.student.save_pretrained(folder, state_dict=weights)  # the config says float32, in which it loads
        record = json.dumps({**progress, "losses": losses, **settings}, indent=2)
        (folder / "training.json").write_text(record + "\n")

    if is_best:
        write(arguments.output_dir / "encoder", save_student)


def restore(lesson: Lesson, optimizer: torch.optim.Optimizer, arguments: argparse.Namespace) -> dict:
    """The progress of the run, or of the one it branches off, after loading its state."""
    for folder in (arguments.output_dir, arguments.start_from):
        if folder and (folder / "state.pt").exists():
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            lesson.load_state_dict(state["lesson"])
            optimizer.load_state_dict(state["optimizer"])
            return state["progress"] | ({"best": math.inf} if folder == arguments.start_from else {})
    if arguments.start_from:
        raise FileNotFoundError(f"--start-from {arguments.start_from}: it holds no state.pt of a run.")
    return {"step": 0, "seconds": 0.0, "best": math.inf}


def rate_at(step: int, arguments: argparse.Namespace) -> float:
    """The learning rate, which rises, stays and falls ("warm-up, stable, decay", arXiv:2404.06395)."""
    rise = (step + 1) / max(1, arguments.warmup_steps)
    fall = (arguments.steps - step) / max(1, arguments.decay_steps)
    return arguments.learning_rate * min(1.0, rise, fall)


def draw(shards: list[Shard], count: int, rng: np.random.Generator) -> tuple[Shard, Tensor]:
    """Random crops with their answers, and which of them to flip."""
    size = len(shards[0]["images"])
    rows = [divmod(row, size) for row in rng.integers(len(shards) * size, size=count)]
    batch = {name: torch.stack([shards[number][name][row] for number, row in rows]) for name in shards[0]}
    return batch, torch.from_numpy(rng.random(count) < 0.5)


def main(arguments: argparse.Namespace) -> dict | None:
    accelerator = Accelerator()
    if arguments.data and accelerator.is_main_process:
        make_answers(arguments, accelerator.device)
    accelerator.wait_for_everyone()
    return train(arguments, accelerator) if arguments.steps else None


def train(arguments: argparse.Namespace, accelerator: Accelerator) -> dict:
    first, *shards = load_shards(arguments.answers, arguments.window)
    classes = first["logits"].shape[1] if "logits" in first else 1 + max(int(s["labels"].max()) for s in shards)
    torch.manual_seed(arguments.seed)
    lesson = Lesson(arguments, first, classes)
    groups = [
        {"params": [p for p in lesson.parameters() if p.ndim >= 2], "weight_decay": arguments.weight_decay},
        {"params": [p for p in lesson.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.98), fused=True)
    progress = restore(lesson, optimizer, arguments)
    model, optimizer = accelerator.prepare(lesson, optimizer)
    saved = time.time()
    bar = trange(progress["step"], arguments.steps, disable=not accelerator.is_main_process, mininterval=10)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, arguments)
        rng = np.random.default_rng((arguments.seed, step, accelerator.process_index))  # the same after a break
        batch, flip = send_to_device(draw(shards, arguments.batch_size, rng), accelerator.device)
        losses = model(batch, flip)
        accelerator.backward(sum(losses.values()))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        is_due = step + 1 == arguments.steps or time.time() - saved > 60 * arguments.save_minutes
        if is_due and accelerator.is_main_process:
            scores = validate(lesson, first, arguments.batch_size)
            progress |= {"step": step + 1, "seconds": progress["seconds"] + time.time() - saved}
            saved = time.time()
            save(arguments, lesson, optimizer, progress, scores)
            bar.write(f"step {step + 1}: held-out losses {scores}")
    return progress


if __name__ == "__main__":
    main(parse_arguments())
