"""AlbumentationsX on OpenCV, in PyTorch's DataLoader.

Differs from Pillow: OpenCV's bicubic resize has no antialiasing, so it reads 16 pixels for each of the view's however much the crop shrinks;
`--area` takes INTER_AREA for shrinking instead, which averages. Its bicubic curve is another one (a = -0.75 for -0.5). The blur is
Pillow's, pixel for pixel, from AlbumentationsX 2.5 on.
"""

import measure  # first: pins the threads

import albumentations as A
import cv2
import numpy as np
import torch

from loader import Loader

INTERPOLATION = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}
# As the others: three channels, and no turning by EXIF.
DECODE = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def compose(view, work):
    brightness, contrast, saturation = view.jitter_ranges()
    crop = A.RandomResizedCrop(
        (work.size, work.size),
        scale=view.crop_scale,
        ratio=view.crop_ratio,
        interpolation=INTERPOLATION[view.interpolation],
        area_for_downscale="image" if work.area else None,
    )
    threshold = view.solarize_threshold / 255
    steps = view.steps({
        "flip": A.HorizontalFlip(p=view.flip),
        "jitter": A.ColorJitter(brightness, contrast, saturation, (-view.hue, view.hue), p=view.jitter),
        "grey": A.ToGray(p=view.grey),
        "blur": A.GaussianBlur(sigma_range=view.blur_sigma, p=view.blur),
        "solarize": A.Solarize((threshold, threshold), p=view.solarize),
    })
    tail = [A.Normalize(work.mean, work.std), A.ToTensorV2()] if work.float else []
    return A.Compose([crop, *steps, *tail])


class Pairs:
    """A map-style data set: index -> two views of one decoded image."""

    def __init__(self, work):
        cv2.setNumThreads(0)
        self.encoded = work.encoded()
        self.views = [compose(view, work) for view in work.views]

    def __len__(self):
        return len(self.encoded)

    def __getitem__(self, index):
        image = cv2.imdecode(np.frombuffer(self.encoded[index], np.uint8), DECODE)
        views = [view(image=image)["image"] for view in self.views]
        # A flip is a view with negative strides, which PyTorch refuses.
        return tuple(view if torch.is_tensor(view) else np.ascontiguousarray(view) for view in views)


class Feed(Loader):
    def __init__(self, work):
        super().__init__(Pairs(work), work)


if __name__ == "__main__":
    measure.main("albumentations", ["albumentationsx", "opencv-python-headless", "torch"], Feed)
