"""Hugging Face datasets: `Dataset.set_transform` with torchvision's transforms on Pillow, in PyTorch's DataLoader.

`datasets` first copies the Parquet into an Arrow file of its own (here in a temporary folder, before the clocks start) and maps that. It turns
images by their EXIF orientation; the others do not.
"""

import measure  # first: pins the threads
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import datasets

from loader import Loader
from torchvision_pillow import compose


class Feed(Loader):
    def __init__(self, work):
        self.folder = tempfile.TemporaryDirectory(prefix="hf-datasets-")
        paths = [str(path) for path in work.shards]
        data = datasets.Dataset.from_parquet(paths, cache_dir=self.folder.name, columns=["image"])
        data = data.cast_column("image", datasets.Image())
        data = data.select(range(min(work.images, len(data))))
        views = [compose(view, work) for view in work.views]

        def transform(rows):
            images = [image.convert("RGB") for image in rows["image"]]
            return {str(n): [view(image) for image in images] for n, view in enumerate(views)}

        data.set_transform(transform)
        super().__init__(data, work)

    def run(self, count):
        for batch in super().run(count):
            yield batch["0"], batch["1"]

    def close(self):
        super().close()
        self.folder.cleanup()


if __name__ == "__main__":
    measure.main("hf-datasets", ["datasets", "torchvision", "pillow", "torch"], Feed)
