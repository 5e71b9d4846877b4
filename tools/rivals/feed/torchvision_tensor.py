"""torchvision's v2 transforms on uint8 tensors, decoded by torchvision.io, in PyTorch's DataLoader.

Differs from Pillow: the blur is one two-dimensional convolution with a kernel of 13 (three of the largest sigma each way); views are
uint8 [3, H, W], with `--float` f32 normalised.
"""

import measure  # first: pins the threads
import math

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2 as T

from loader import Loader


def compose(view, work):
    kernel = 2 * math.ceil(3 * view.blur_sigma[1]) + 1
    steps = view.steps({
        "flip": T.RandomHorizontalFlip(view.flip),
        "jitter": T.RandomApply([T.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)], p=view.jitter),
        "grey": T.RandomGrayscale(view.grey),
        "blur": T.RandomApply([T.GaussianBlur(kernel, view.blur_sigma)], p=view.blur),
        "solarize": T.RandomSolarize(view.solarize_threshold, view.solarize),
    })
    crop = T.RandomResizedCrop(
        work.size,
        scale=view.crop_scale,
        ratio=view.crop_ratio,
        interpolation=T.InterpolationMode(view.interpolation),
        antialias=True,
    )
    tail = [T.ToDtype(torch.float32, scale=True), T.Normalize(work.mean, work.std)] if work.float else []
    return T.Compose([crop, *steps, *tail])


class Pairs:
    """A map-style data set: index -> two views of one decoded image."""

    def __init__(self, work):
        self.encoded = work.encoded()
        self.views = [compose(view, work) for view in work.views]

    def __len__(self):
        return len(self.encoded)

    def __getitem__(self, index):
        data = torch.from_numpy(np.frombuffer(self.encoded[index], np.uint8))
        image = decode_image(data, ImageReadMode.RGB)
        return tuple(view(image) for view in self.views)


class Feed(Loader):
    def __init__(self, work):
        super().__init__(Pairs(work), work)


if __name__ == "__main__":
    measure.main("torchvision-tensor", ["torchvision", "torch"], Feed)
