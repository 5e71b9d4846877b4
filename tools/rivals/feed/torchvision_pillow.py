"""The official VICReg code's way: torchvision's transforms on Pillow images, in PyTorch's DataLoader.

With `--float` as published: ToTensor and Normalize, f32 [3, H, W]. Without it the views stay uint8 [H, W, 3], as ours.
"""

import measure  # first: pins the threads
import io
import random

import numpy as np
from PIL import Image, ImageFilter
from torchvision import transforms as T

from loader import Loader


class Blur:
    """The official code's: Pillow's GaussianBlur, three box passes, with radius = sigma."""

    def __init__(self, sigma):
        self.sigma = sigma

    def __call__(self, image):
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


def compose(view, work):
    crop = T.RandomResizedCrop(
        work.size, scale=view.crop_scale, ratio=view.crop_ratio, interpolation=T.InterpolationMode(view.interpolation)
    )
    steps = view.steps({
        "flip": T.RandomHorizontalFlip(view.flip),
        "jitter": T.RandomApply([T.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)], p=view.jitter),
        "grey": T.RandomGrayscale(view.grey),
        "blur": T.RandomApply([Blur(view.blur_sigma)], p=view.blur),
        "solarize": T.RandomSolarize(view.solarize_threshold, view.solarize),
    })
    tail = [T.ToTensor(), T.Normalize(work.mean, work.std)] if work.float else [np.array]
    return T.Compose([crop, *steps, *tail])


class Pairs:
    """A map-style data set: index -> two views of one decoded image."""

    def __init__(self, work):
        self.encoded = work.encoded()
        self.views = [compose(view, work) for view in work.views]

    def __len__(self):
        return len(self.encoded)

    def __getitem__(self, index):
        image = Image.open(io.BytesIO(self.encoded[index])).convert("RGB")
        return tuple(view(image) for view in self.views)


class Feed(Loader):
    def __init__(self, work):
        super().__init__(Pairs(work), work)


if __name__ == "__main__":
    measure.main("torchvision-pillow", ["torchvision", "pillow", "torch"], Feed)
