# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""Pretrains a small Swin by distillation: it learns the outputs of a teacher for crops of photographs.

    accelerate launch recipes/pretrain_encoder.py --data FOLDER=3 OTHER=1 --teacher timm/tf_efficientnet_lite2.in1k \\
        --answers runs/answers --output-dir runs/pretraining

First the teacher computes answers. Each file in --answers is a shard of crops with the teacher's logits and its last
maps of stride 8, 16 and 32. A timm teacher also classifies each place of its last map ("token labelling",
arXiv:2104.10858). The teacher sees each crop once, and any number of runs can learn from its answers ("fast knowledge
distillation", arXiv:2112.01528). A larger --shards adds shards; without --data no shards are made. Without --teacher
the answers are the column `label`.

Then the student trains. With several folders of --answers, e.g. of crops of several sizes, each step takes the next
folder in turn. `encoder` in --output-dir holds the best student in float16, with its settings and losses. An
interrupted run resumes from its last save. With --decay-steps 0 the learning rate stays constant after the warm-up,
and more --steps prolong the run. --start-from branches off such a run, e.g. to let the learning rate fall. --student
starts a run from the weights of a Swin; a command that resumes or branches off this run needs the same --student, and
takes the weights of the last save. --steps 0 only makes answers.
"""

import argparse
import math
import os
import time
from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, send_to_device
from datasets import Dataset, Image, load_dataset
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import normalize, pil_to_tensor, resize
from tqdm.auto import trange
from transformers import AutoImageProcessor, AutoModelForImageClassification, SwinConfig, SwinForImageClassification

from peft_polyhistor.training.files import read_json, replacing, write_json


BICUBIC = InterpolationMode.BICUBIC
PLACE_CLASSES = 16  # number of the most probable classes that are kept for each place
LOGITS_WEIGHT = 0.1  # weight of the divergence of logits and of places; the loss of each map has weight 1
AT_LEAST_ONE = ["embed_dim", "window", "batch_size", "shards", "shard_size", "teacher_size", "image_size"]
AT_LEAST_ONE += ["teacher_batch_size"]
OF_ALL_SHARDS = ("teacher", "shard_size", "teacher_size", "image_size")  # settings that shards of one folder share
FOLDERS = ("answers", "output_dir", "start_from")  # arguments that the record of a run leaves out
OF_STUDENT = ("embed_dim", "depths", "heads", "window")  # settings of a student that starts at random
Shard = dict[str, Tensor]  # images, and labels or the teacher's answers; the first axis is the crop


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, default: object = None, **options) -> None:
        options["help"] += "" if default is None else " (default: %(default)s)"
        parser.add_argument(name, default=default, **options)

    text = "folder of the shards, or several to train on in turn; the first shard of each is held out for validation"
    add("--answers", type=Path, required=True, nargs="+", help=text)
    add("--output-dir", type=Path, required=True, help="folder of the run")
    metavar, text = "FOLDER[=SHARE]", "photographs (train*.parquet with the column `image`, or an image folder)"
    add("--data", default=[], nargs="+", metavar=metavar, help=f"{text} and their share of the crops")
    add("--teacher", help="folder or Hub id of transformers, or of timm as 'local-dir:...' or 'timm/...'")
    add("--shards", type=int, default=100, help="number of shards")
    add("--shard-size", type=int, default=512, help="crops per shard, about 180 KB each")
    add("--teacher-size", type=int, default=192, help="side of the crops for the teacher in pixels")
    add("--image-size", type=int, default=128, help="side of the crops for the student in pixels")
    add("--smallest-crop", type=float, default=0.25, help="smallest fraction of the photograph's area in a crop")
    add("--teacher-batch-size", type=int, default=16, help="crops per batch of the teacher")
    add("--start-from", type=Path, help="output folder of a run to branch off")
    add("--student", help="folder or Hub id of a Swin whose weights the student starts from, not random ones")
    add("--embed-dim", type=int, default=32, help="channels of the student's first stage")
    add("--depths", type=int, nargs=4, default=[2, 2, 4, 2], help="blocks per stage of the student")
    add("--heads", type=int, nargs=4, default=[2, 4, 8, 16], help="attention heads per stage of the student")
    add("--window", type=int, default=4, help="side of the student's windows in tokens")
    add("--steps", type=int, default=20_000, help="optimiser steps; 0 only makes answers")
    add("--warmup-steps", type=int, default=300, help="first steps, in which the learning rate rises")
    add("--decay-steps", type=int, default=4_000, help="last steps, in which the learning rate falls to 0")
    add("--batch-size", type=int, default=32, help="crops per step and process of the student")
    add("--learning-rate", type=float, default=1e-3, help="learning rate after the warm-up")
    add("--weight-decay", type=float, default=0.05, help="weight decay of weight matrices")
    add("--temperature", type=float, default=1.0, help="temperature of the teacher's and the student's logits")
    add("--save-minutes", type=float, default=10, help="minutes between saves")
    add("--seed", type=int, default=0, help="seed of the student and its batches")
    arguments = parser.parse_args(argv)
    if arguments.data and len(arguments.answers) > 1:
        parser.error(f"--data fills one folder of --answers, got {len(arguments.answers)}. Fill one after the other.")
    for name in AT_LEAST_ONE:
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}.")
    if arguments.student:
        for name in OF_STUDENT:
            if getattr(arguments, name) != parser.get_default(name):
                parser.error(f"--{name.replace('_', '-')} has no effect with --student, whose config gives it.")
            delattr(arguments, name)
    return arguments


def load_photographs(source: str, columns: list[str]) -> Dataset:
    """Loads the training photographs of a folder."""
    if not Path(source).is_dir():
        raise FileNotFoundError(f"--data {source}: no such folder. Give FOLDER or FOLDER=SHARE.")
    files = sorted(str(path) for path in Path(source).glob("train*.parquet"))
    data = load_dataset("parquet", data_files=files) if files else load_dataset("imagefolder", data_dir=source)
    if missing := sorted(set(columns) - set(data["train"].column_names)):
        raise ValueError(f"'{source}' lacks the columns {missing}; it has {data['train'].column_names}.")
    return data["train"].select_columns(columns).cast_column("image", Image(mode="RGB"))


def split_shares(sources: list[str]) -> dict[str, float]:
    """Splits items FOLDER=NUMBER into folders and their shares, which add up to 1; the number defaults to 1."""
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
    """A frozen image classifier of timm or transformers."""

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
        """Computes logits, the last map of each stride, and the classes of the places of the last map, in float16.

        Args:
            crops: Integers from 0 to 255, `(batch, 3, size, size)`.

        Raises:
            ValueError: An answer is not finite in float16.
        """
        pixels = (crops.to(self.mean.device) / 255 - self.mean) / self.std
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        places = {}
        if self.is_timm:
            last, maps = self.model.forward_intermediates(pixels)
            logits = self.model.forward_head(last)
            rows = last.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]  # each place as a map of one place
            top = self.model.forward_head(rows).softmax(-1).topk(min(PLACE_CLASSES, logits.shape[1]))
            shape = (len(last), *last.shape[2:], -1)
            places["probabilities"] = top.values.view(shape).permute(0, 3, 1, 2)
            places["classes"] = top.indices.view(shape).permute(0, 3, 1, 2).short()
        else:
            output = self.model(pixels, output_hidden_states=True)
            logits, maps = output.logits, output.get("reshaped_hidden_states", output.hidden_states)
        by_stride = {crops.shape[-1] // m.shape[-1]: m for m in maps if m.ndim == 4}  # the last map of a stride
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
    """Makes the crops of a shard, which depend only on its number, and their answers."""
    torch.manual_seed(number)  # RandomResizedCrop draws from PyTorch
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
    """Writes the missing shards.

    Raises:
        ValueError: The shards that are there are answers of another teacher, or of other sizes.
    """
    (folder,), shares = arguments.answers, split_shares(arguments.data)
    columns = ["image"] if arguments.teacher else ["image", "label"]
    data = [load_photographs(source, columns) for source in shares]
    teacher = Teacher(arguments.teacher, device) if arguments.teacher else None
    folder.mkdir(parents=True, exist_ok=True)
    settings, record = {name: getattr(arguments, name) for name in OF_ALL_SHARDS}, folder / "settings.json"
    if record.exists() and (found := read_json(record)) != settings:
        raise ValueError(f"--answers {folder} has shards of {found}, not {settings}. Give another folder.")
    write_json(record, settings)
    for number in trange(arguments.shards, desc="shards"):
        file = folder / f"{number:05}.safetensors"
        if not file.exists():
            shard = make_shard(number, data, list(shares.values()), teacher, arguments)
            with replacing(file) as fresh:
                save_file(shard, fresh)


def load_shards(folder: Path) -> list[Shard]:
    """Maps the files of the shards into memory; only the parts that are used are read."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) < 2:
        raise FileNotFoundError(f"--answers {folder}: {len(files)} shards. Make two or more with --data.")
    shards = [load_file(file) for file in files]
    shapes = [{name: answers.shape for name, answers in shard.items()} for shard in shards]
    if wrong := next((file for file, shape in zip(files, shapes, strict=True) if shape != shapes[0]), None):
        raise ValueError(f"{wrong} and {files[0]} were made with other settings. Give a folder for each.")
    return shards


def load_folders(folders: list[Path]) -> list[list[Shard]]:
    """Loads the shards of each folder, those of the smallest crops first.

    Raises:
        ValueError: The answers of two folders are of other kinds, e.g. of teachers with other maps.
    """
    loaded = sorted(map(load_shards, folders), key=lambda shards: shards[0]["images"].shape[-1])
    kinds = [{name: math.prod(answers.shape[1:2]) for name, answers in shards[0].items()} for shards in loaded]
    if wrong := next((kind for kind in kinds if kind != kinds[0]), None):
        raise ValueError(
            f"--answers {' '.join(map(str, folders))} have answers with these channels: {kinds[0]} and {wrong}. Give "
            "folders of one teacher."
        )
    return loaded


def make_student(arguments: argparse.Namespace, image_size: int, classes: int) -> SwinForImageClassification:
    """Loads or builds the student.

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
            "map. Lower --window, give another --student, or make larger crops in another --answers folder."
        )
    return model


def load_student(source: str, settings: dict) -> SwinForImageClassification:
    """Loads a Swin; a classifier of another number of classes is left out."""
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
    """Builds a Swin whose heads start by attending to fixed places around a token, like a convolution."""
    model = SwinForImageClassification(
        SwinConfig(
            embed_dim=arguments.embed_dim,
            depths=arguments.depths,
            num_heads=arguments.heads,
            window_size=arguments.window,
            **settings,
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
    """The student, linear heads from its maps to the teacher's maps, and the losses.

    Each map of the student predicts the teacher's map of its stride and the upsampled map of the next stride. Channels
    are normalised by their mean and standard deviation over the first shard. The maps of stride 16 and 32 also predict
    the classes of each place.
    """

    def __init__(self, arguments: argparse.Namespace, shard: Shard, classes: int):
        super().__init__()
        self.student = make_student(arguments, shard["images"].shape[-1], classes)
        width = self.student.config.embed_dim
        self.temperature = arguments.temperature
        self.asked: dict[int, list[str]] = {}  # by the student's stride
        self.heads = nn.ModuleDict()
        for name in sorted(name for name in shard if name.startswith("map")):
            stride = int(name.removeprefix("map"))
            self.asked[stride] = [k for k in (name, f"map{2 * stride}") if k in shard]
            channels = sum(shard[k].shape[1] for k in self.asked[stride])
            self.heads[str(stride)] = nn.Conv2d(width * stride // 4, channels, kernel_size=1)
            std, mean = torch.std_mean(shard[name].float(), (0, 2, 3), keepdim=True)
            self.register_buffer(f"norm_{name}", torch.stack([std.clamp(min=1e-6), mean]), persistent=False)
        self.has_places = "classes" in shard
        if self.has_places:
            self.classifier16 = nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, classes))

    def forward(self, shard: Shard, flip: Tensor) -> dict[str, Tensor]:
        """Returns the losses of crops, of which those in `flip` are mirrored."""
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
        """Returns the cross-entropies of the classes at each place of the student's maps of stride 16 and 32.

        The teacher's probabilities are resized to the student's map. Applying the transposed resizing to the student's
        log probabilities gives the same sum, without the teacher's probabilities of all classes.
        """
        classes, probabilities = (flipped[name].flatten(2).mT for name in ("classes", "probabilities"))
        classes, probabilities = classes.long(), probabilities.float()  # (batch, places, top classes)
        size = tuple(flipped["classes"].shape[-2:])
        classifiers = {16: self.classifier16, 32: nn.Sequential(self.student.swin.layernorm, self.student.classifier)}
        losses = {}
        for stride, classifier in classifiers.items():
            given = F.log_softmax(classifier(maps[stride].flatten(2).mT), -1)  # (batch, places, classes)
            resize = resizing_matrix(size, tuple(maps[stride].shape[-2:])).to(given)
            with torch.autocast(given.device.type, enabled=False):  # in float32, as all losses
                given = given / (resize @ probabilities.sum(-1, keepdim=True))
                chosen = (resize.T @ given).gather(-1, classes)
            losses[f"places{stride}"] = -LOGITS_WEIGHT * (probabilities * chosen).sum() / given[..., 0].numel()
        return losses


@cache
def resizing_matrix(size: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
    """Returns the matrix that resizes a flattened map from `size` to `target`, as `F.interpolate` does."""
    maps = torch.eye(math.prod(size)).view(-1, 1, *size)
    return F.interpolate(maps, target, mode="bilinear", antialias=True).flatten(1).T


@torch.inference_mode()
def validate(lesson: Lesson, shards: list[Shard], batch_size: int) -> dict[str, float]:
    """Returns the mean losses over the held-out shards."""
    device = next(lesson.parameters()).device
    lesson.eval()
    plain = []
    for shard in shards:
        for batch in zip(*(answers.to(device).split(batch_size) for answers in shard.values()), strict=True):
            crops = dict(zip(shard, batch, strict=True))
            plain.append(lesson(crops, torch.zeros(len(batch[0]), device=device).bool()))
    lesson.train()
    return {name: round(sum(losses[name].item() for losses in plain) / len(plain), 4) for name in plain[0]}


def save(arguments: argparse.Namespace, lesson: Lesson, optimizer, progress: dict, losses: dict[str, float]) -> None:
    """Writes the state of the run, and before it the student if it is the best so far.

    Raises:
        FloatingPointError: A loss is not finite. The files of the last save stay.
    """
    if not math.isfinite(sum(losses.values())):
        raise FloatingPointError(f"The held-out losses are {losses}. Lower --learning-rate; the last save is whole.")
    is_best = sum(losses.values()) < progress["best"]
    progress["best"] = min(sum(losses.values()), progress["best"])
    state = {"lesson": lesson.state_dict(), "optimizer": optimizer.state_dict(), "progress": progress}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    if is_best:
        settings = {name: value for name, value in vars(arguments).items() if name not in FOLDERS}
        weights = {name: weight.half() for name, weight in lesson.student.state_dict().items()}
        with replacing(arguments.output_dir / "encoder") as folder:
            lesson.student.save_pretrained(folder, state_dict=weights)  # loads in float32, as the config says
            write_json(folder / "training.json", {**progress, "losses": losses, **settings})
    with replacing(arguments.output_dir / "state.pt") as file:
        torch.save(state, file)


def restore(lesson: Lesson, optimizer: torch.optim.Optimizer, arguments: argparse.Namespace) -> dict:
    """Loads the state of the run, or of the run it branches off, and returns its progress."""
    for folder in (arguments.output_dir, arguments.start_from):
        if folder and (folder / "state.pt").exists():
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            lesson.load_state_dict(state["lesson"])
            decays = [group["weight_decay"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state["optimizer"])
            for group, decay in zip(optimizer.param_groups, decays, strict=True):
                group["weight_decay"] = decay  # of this command; the state has that of the earlier one
            return state["progress"] | ({"best": math.inf} if folder == arguments.start_from else {})
    if arguments.start_from:
        raise FileNotFoundError(f"--start-from {arguments.start_from}: no state.pt. Give the --output-dir of a run.")
    return {"step": 0, "seconds": 0.0, "best": math.inf}


def rate_at(step: int, arguments: argparse.Namespace) -> float:
    """Returns the learning rate of a step: it rises, stays and falls ("warm-up, stable, decay", arXiv:2404.06395)."""
    rise = (step + 1) / max(1, arguments.warmup_steps)
    fall = (arguments.steps - step) / max(1, arguments.decay_steps)
    return arguments.learning_rate * min(1.0, rise, fall)


def draw(shards: list[Shard], count: int, rng: np.random.Generator) -> tuple[Shard, Tensor]:
    """Draws random crops with their answers, and which of them to flip."""
    size = len(shards[0]["images"])
    rows = [divmod(row, size) for row in rng.integers(len(shards) * size, size=count)]
    batch = {name: torch.stack([shards[number][name][row] for number, row in rows]) for name in shards[0]}
    return batch, torch.from_numpy(rng.random(count) < 0.5)


def main(arguments: argparse.Namespace) -> dict | None:
    """Makes the answers and trains the student; returns the progress of the run.

    Raises:
        ValueError: Several processes were started that do not train together.
    """
    # The other processes wait while one process makes the answers.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:  # each process would train alone, and write the same files
        raise ValueError(
            f"{started} processes were started, and accelerate joins {accelerator.num_processes}. Start one, or on a "
            "CPU use `accelerate launch --cpu`."
        )
    if arguments.data and accelerator.is_main_process:
        make_answers(arguments, accelerator.device)
    accelerator.wait_for_everyone()
    return train(arguments, accelerator) if arguments.steps else None


def train(arguments: argparse.Namespace, accelerator: Accelerator) -> dict:
    """Trains the student from the start, or from the last save of the run."""
    folders = load_folders(arguments.answers)
    held_out = [shards.pop(0) for shards in folders]
    labels = [int(shard["labels"].max()) for shards in (held_out, *folders) for shard in shards if "labels" in shard]
    classes = 1 + max(labels) if labels else held_out[0]["logits"].shape[1]
    torch.manual_seed(arguments.seed)
    lesson = Lesson(arguments, held_out[0], classes)
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
        rng = np.random.default_rng((arguments.seed, step, accelerator.process_index))  # the same in a resumed run
        shards = folders[step % len(folders)]
        batch, flip = send_to_device(draw(shards, arguments.batch_size, rng), accelerator.device)
        losses = model(batch, flip)
        accelerator.backward(sum(losses.values()))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        is_due = step + 1 == arguments.steps or time.time() - saved > 60 * arguments.save_minutes
        if is_due and accelerator.is_main_process:
            scores = validate(lesson, held_out, arguments.batch_size)
            progress |= {"step": step + 1, "seconds": progress["seconds"] + time.time() - saved}
            saved = time.time()
            save(arguments, lesson, optimizer, progress, scores)
            bar.write(f"step {step + 1}: held-out losses {scores}")
    return progress


if __name__ == "__main__":
    main(parse_arguments())
