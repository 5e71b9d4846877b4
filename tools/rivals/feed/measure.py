"""Runs a peer and prints what it costs.

A peer is a class `Feed(work)` with `run(count)`, which yields batches of `count` images as pairs (view 1, view 2), and `close()`, which ends its
workers. One pass over all images warms up; when it has been consumed nothing is under way, and the clocks start. The measured pass
follows. CPU is user and system time of the process and its workers, these after they have been joined; what was spent before the clocks
started is taken off. The memory sampler is another process and in no figure.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from importlib import metadata

import numpy as np

import check
import memory
import work as the_work

TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(without):
    """User and system time of this process, of its living descendants and of those that were joined."""
    seconds = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        seconds += usage.ru_utime + usage.ru_stime
    for pid in memory.descendants(os.getpid(), without):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        seconds += sum(map(int, fields[11:15])) / TICK  # own and joined children's
    return seconds


def consume(batches, work):
    """Takes all batches and looks at each view; the number of images."""
    images = 0
    for pair in batches:
        views = [np.asarray(view) for view in pair]
        assert len(views) == 2, f"{len(views)} views"
        for view in views:
            assert view.shape == views[0].shape and view.shape[1:] in shapes(work), view.shape
            assert view.dtype == (np.float32 if work.float else np.uint8), view.dtype
            assert view[:, :: work.size // 4].any(), "an empty view"  # reads some of each image
        images += len(views[0])
    return images


def shapes(work):
    return (work.size, work.size, 3), (3, work.size, work.size)


def measure(feed, work, sampler):
    consume(feed.run(feed.images), work)
    cpu, wall = cpu_seconds(without=(sampler.pid,)), time.perf_counter()
    images = consume(feed.run(work.images), work)
    wall = time.perf_counter() - wall
    feed.close()
    left = memory.descendants(os.getpid(), without=(sampler.pid,))
    assert not left, f"workers still there: {left}"
    cpu = cpu_seconds(without=(sampler.pid,)) - cpu
    assert images == work.images, f"{images} images for {work.images}"
    return {
        "images": images,
        "workers": work.workers,
        "cpu_ms_per_image": round(1000 * cpu / images, 4),
        "images_per_s": round(images / wall, 2),
    }


def main(name, packages, feed):
    """The command line of a peer: its name in the tables, the packages that do the work, its class."""
    args = the_work.parser(f"{name}: two views of each image, measured.").parse_args()
    work = the_work.from_arguments(args)
    version = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    if args.check:
        sys.exit(check.main(name, feed, work))
    sampler = subprocess.Popen(
        [sys.executable, memory.__file__, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with sampler:
        try:
            result = {"name": name, "version": version, **measure(feed(work), work, sampler)}
        except BaseException:
            sampler.kill()
            raise
        result |= json.loads(sampler.communicate()[0])
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{key:18}{value}" for key, value in result.items()))
