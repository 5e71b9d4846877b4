"""PyTorch's DataLoader as the peers use it: processes that stay between the passes, so that nothing is under way when a pass ends."""

import warnings

import torch
from torch.utils.data import DataLoader

import work as the_work

# Buffers over Parquet pages are read-only; nobody writes to them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class Loader:
    """`dataset[i]` gives a pair of views; batches are stacked by the default collation."""

    def __init__(self, dataset, work):
        torch.set_num_threads(1)
        self.images = len(dataset)
        self.positions = the_work.Positions(self.images)
        self.loader = DataLoader(
            dataset,
            batch_size=work.batch,
            sampler=self.positions,
            num_workers=work.workers,
            persistent_workers=work.workers > 0,
        )

    def run(self, count):
        self.positions.count = count
        yield from self.loader

    def close(self):
        del self.loader  # its iterator joins the workers
