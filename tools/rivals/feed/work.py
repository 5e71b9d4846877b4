"""The work that every peer does: which images, which two views, in what batches.

The views come from our own recipe (`pipelines/*.toml`), so that ours and theirs are drawn from the same numbers. The encoded images are
read into memory before the first pass: reading costs a peer nothing once it runs.

Import this before numpy, torch or OpenCV: it pins their threads to one a process.
"""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import dataclasses
import pathlib
import random
import re
import tomllib

import pyarrow.parquet as pq

PIPELINES = pathlib.Path(__file__).resolve().parents[3] / "pipelines"
RECIPES = {224: "imagenet-100ep.toml", 32: "cifar10.toml"}


@dataclasses.dataclass(frozen=True)
class View:
    """One `[[views.view]]`; the defaults are the recipe's (pipelines/REFERENCE.md)."""

    order: tuple = ("flip", "jitter", "grey", "blur", "solarize")
    interpolation: str = "bicubic"
    crop_scale: tuple = (0.08, 1.0)
    crop_ratio: tuple = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: int = 128

    def steps(self, operations):
        """What `operations` names, in the recipe's order, without what is never drawn."""
        return [operations[name] for name in self.order if getattr(self, name) > 0]

    def jitter_ranges(self):
        """Factors of brightness, contrast and saturation, as ranges."""
        return [(max(0.0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)]


@dataclasses.dataclass
class Work:
    views: list  # two
    size: int
    mean: tuple
    std: tuple
    shards: list  # paths
    images: int  # drawn in the measured pass
    batch: int
    workers: int  # processes or threads; 0: the main process does the work
    float: bool  # normalised f32 instead of uint8
    area: bool  # OpenCV only: shrink with INTER_AREA

    def encoded(self):
        """The encoded images, as many as are drawn, as buffers over the Parquet pages."""
        buffers = []
        for path in self.shards:
            for batch in pq.ParquetFile(path).iter_batches(columns=["image"]):
                buffers += [value.as_buffer() for value in batch.column(0).field("bytes")]
                if len(buffers) >= self.images:
                    return buffers[: self.images]
        return buffers


class Positions:
    """Indices of the images of one pass, as a PyTorch sampler: `count` of them, each epoch in an order of its own."""

    def __init__(self, images):
        self.images, self.count = images, images
        self.random = random.Random(1)

    def __len__(self):
        return self.count

    def __iter__(self):
        for start in range(0, self.count, self.images):
            epoch = self.random.sample(range(self.images), self.images)
            yield from epoch[: self.count - start]

    def batches(self, size):
        indices = list(self)
        return [indices[start : start + size] for start in range(0, len(indices), size)]


# ---- arguments -----------------------------------------------------------------------------------------------------------

def shards_of(folder):
    """The Parquet files to train on: those named as held out are left out where there are others, as our feed does."""
    folder = pathlib.Path(folder)
    paths = sorted(folder.rglob("*.parquet")) if folder.is_dir() else [folder]
    held_out = {"test", "testing", "validation", "valid", "val", "dev", "eval"}
    words = lambda path: set(re.split("[^a-z]+", str(path.relative_to(folder)).lower()))
    kept = [path for path in paths if not words(path) & held_out]
    if not paths:
        raise SystemExit(f"no *.parquet in {folder}")
    return kept or paths


def parser(summary):
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--data", required=True, help="folder of Parquet shards, or one shard")
    parser.add_argument("--size", type=int, help="side of a view [default: the recipe's]")
    parser.add_argument("--recipe", help="TOML with the views [default: imagenet-100ep.toml; cifar10.toml for --size 32]")
    parser.add_argument("--images", type=int, default=0, help="images to measure [default: each once]")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes or threads; 0: the main process [default: 0]")
    parser.add_argument("--float", action="store_true", help="normalised f32 views instead of uint8")
    parser.add_argument("--area", action="store_true", help="OpenCV only: shrink with INTER_AREA")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--check", action="store_true", help="hold the views against torchvision's on Pillow; no timing")
    return parser


def from_arguments(args):
    path = pathlib.Path(args.recipe) if args.recipe else PIPELINES / RECIPES.get(args.size, RECIPES[224])
    views = tomllib.loads(path.read_text())["views"]
    tables = views.get("view", [{}, {"blur": 0.1, "solarize": 0.2}])
    drawn = [View(**{key: tuple(x) if isinstance(x, list) else x for key, x in table.items()}) for table in tables]
    shards = shards_of(args.data)
    return Work(
        views=drawn if len(drawn) == 2 else drawn * 2,
        size=args.size or views.get("size", 224),
        mean=tuple(views.get("mean", (0.485, 0.456, 0.406))),
        std=tuple(views.get("std", (0.229, 0.224, 0.225))),
        shards=shards,
        images=args.images or sum(pq.read_metadata(path).num_rows for path in shards),
        batch=args.batch,
        workers=args.workers,
        float=args.float,
        area=args.area,
    )
