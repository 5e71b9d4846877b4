"""SPDL: its pipeline of threads and its decoder (FFmpeg's), with torchvision's transforms on Pillow; SPDL has no augmentations of its own.

`--workers` are threads of one process; 0 is one thread. Needs FFmpeg's shared libraries (4 to 9) beside the package.
"""

import measure  # first: pins the threads

import numpy as np
import spdl.io
import torch
from PIL import Image
from spdl.pipeline import PipelineBuilder

import work as the_work
from torchvision_pillow import compose

RGB = spdl.io.get_video_filter_desc(pix_fmt="rgb24")


class Feed:
    def __init__(self, work):
        torch.set_num_threads(1)
        self.encoded = work.encoded()
        self.images = len(self.encoded)
        self.positions = the_work.Positions(self.images)
        self.views = [compose(view, work) for view in work.views]
        self.stack = (lambda views: torch.stack(views)) if work.float else np.stack
        self.batch, self.threads = work.batch, max(1, work.workers)
        self.pair(0)  # FFmpeg is loaded at the first use: here its absence is a plain error

    def pair(self, index):
        pixels = spdl.io.to_numpy(spdl.io.load_image(self.encoded[index].to_pybytes(), filter_desc=RGB))
        image = Image.fromarray(pixels)
        return [view(image) for view in self.views]

    def run(self, count):
        self.positions.count = count
        pipeline = (
            PipelineBuilder()
            .add_source(self.positions)
            .pipe(self.pair, concurrency=self.threads)
            .aggregate(self.batch)
            .pipe(lambda pairs: [self.stack(views) for views in zip(*pairs)])
            .add_sink(2)
            .build(num_threads=self.threads, max_failures=0)
        )
        with pipeline.auto_stop():
            yield from pipeline.get_iterator(timeout=60)

    def close(self):
        pass


if __name__ == "__main__":
    measure.main("spdl", ["spdl", "torchvision", "pillow"], Feed)
