"""NVIDIA DALI with every operator on the CPU; the Parquet's bytes come in through `external_source`, since DALI reads none.

Differs from Pillow: one colour twist for the jitter, a 3x3 matrix in a fixed order, with hue as a rotation and contrast about middle grey
instead of the image's mean; a true Gaussian with a window of three sigma each way. The resize is bicubic with antialiasing. `--workers` are threads of DALI's pool; 0 is one thread.
"""

import measure  # first: pins the threads

import numpy as np
from nvidia.dali import fn, pipeline_def, types

import work as the_work

INTERPOLATION = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}


def coin(probability):
    return fn.random.coin_flip(probability=probability, dtype=types.BOOL)


def uniform(low, high):
    return fn.random.uniform(range=(low, high))


@pipeline_def(enable_conditionals=True)
def pipeline(source, work):
    encoded = fn.external_source(source=source, dtype=types.UINT8, ndim=1, cycle="raise")
    image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB, adjust_orientation=False)
    return tuple([augment(image, view, work) for view in work.views])


def augment(image, view, work):
    x = fn.random_resized_crop(
        image,
        size=work.size,
        random_area=view.crop_scale,
        random_aspect_ratio=view.crop_ratio,
        interp_type=INTERPOLATION[view.interpolation],
        antialias=True,
    )
    for step in view.steps({"flip": flip, "jitter": jitter, "grey": grey, "blur": blur, "solarize": solarize}):
        x = step(x, view)
    if work.float:
        mean, std = [255 * m for m in work.mean], [255 * s for s in work.std]
        x = fn.crop_mirror_normalize(x, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std)
    return x


def flip(x, view):
    if coin(view.flip):
        x = fn.flip(x, horizontal=1)
    return x


def jitter(x, view):
    brightness, contrast, saturation = view.jitter_ranges()
    if coin(view.jitter):
        x = fn.color_twist(
            x,
            brightness=uniform(*brightness),
            contrast=uniform(*contrast),
            saturation=uniform(*saturation),
            hue=uniform(-360 * view.hue, 360 * view.hue),
        )
    return x


def grey(x, view):
    if coin(view.grey):
        x = fn.color_twist(x, saturation=0.0)
    return x


def blur(x, view):
    if coin(view.blur):
        x = fn.gaussian_blur(x, sigma=uniform(*view.blur_sigma))
    return x


def solarize(x, view):
    if coin(view.solarize):
        inverted = types.Constant(255).uint8() - x
        high = x >= view.solarize_threshold
        x = high * inverted + (high == False) * x  # noqa: E712: element by element
    return x


class Feed:
    def __init__(self, work):
        self.encoded = work.encoded()
        self.images = len(self.encoded)
        self.positions = the_work.Positions(self.images)
        self.batch, self.first = work.batch, True
        self.pipeline = pipeline(
            self.source, work, batch_size=work.batch, num_threads=max(1, work.workers), device_id=None, prefetch_queue_depth=2
        )
        self.pipeline.build()

    def source(self):
        for indices in self.positions.batches(self.batch):
            yield [np.frombuffer(self.encoded[index], np.uint8) for index in indices]

    def run(self, count):
        self.positions.count = count
        if not self.first:
            self.pipeline.reset()
        self.first = False
        while True:
            try:
                outputs = self.pipeline.run()
            except StopIteration:  # all is done and nothing under way
                return
            yield tuple(np.asarray(output.as_tensor()) for output in outputs)

    def close(self):
        del self.pipeline


if __name__ == "__main__":
    measure.main("dali-cpu", ["nvidia-dali-cuda130"], Feed)
