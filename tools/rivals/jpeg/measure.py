"""libjpeg-turbo's decoder on photographs of Parquet shards: CPU milliseconds a photograph, whole and in boxes, as JSON lines.

Builds turbo.c and gives it the photographs, in memory. Needs a C compiler, libjpeg-turbo with its headers (Debian: libjpeg-dev),
pyarrow and Pillow (for the sizes).

The boxes are torchvision's RandomResizedCrop with its defaults (scale 0.08 to 1, ratio 3/4 to 4/3), two for each photograph. `--boxes FILE`
is read where it is there and else written, so that another program can take the same: lines `index left top width height`, where index
counts the photographs of all shards from 0, in the order of the shards' names. A decoder that makes both views decodes the smallest box
around the two once.

Usage: python tools/rivals/jpeg/measure.py --data DIR --boxes FILE [--rounds 5] [--passes 1] [--images N] [--seed 1] [--prefix DIR]
"""

import argparse
import io
import math
import os
import pathlib
import random
import subprocess
import sys
import tempfile

import pyarrow.parquet as pq
from PIL import Image

SOURCE = pathlib.Path(__file__).resolve().with_name("turbo.c")
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def photographs(folder, count):
    """Encoded bytes, in the order of the shards' names."""
    found = []
    for path in sorted(pathlib.Path(folder).rglob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(columns=["image"]):
            found += [value.as_py() for value in batch.column(0).field("bytes")]
            if count and len(found) >= count:
                return found[:count]
    return found


def crop(rng, width, height):
    """(left, top, width, height), as torchvision's RandomResizedCrop.get_params draws it."""
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, width - w), rng.randint(0, height - h), w, h
    # None fits: the largest in the middle whose ratio is within the range.
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def draw(encoded, seed):
    rng = random.Random(seed)
    lines = []
    for index, data in enumerate(encoded):
        size = Image.open(io.BytesIO(data)).size
        lines += [" ".join(map(str, (index, *crop(rng, *size)))) for _ in range(2)]
    return "\n".join(lines) + "\n"


def build(folder, prefix):
    """The path of the program, linked with the system's library or with the one installed under `prefix`."""
    program = pathlib.Path(folder) / "turbo"
    where = []
    if prefix:
        lib = next(d for d in (pathlib.Path(prefix) / "lib", pathlib.Path(prefix) / "lib64") if d.is_dir())
        where = [f"-I{prefix}/include", f"-L{lib}", f"-Wl,-rpath,{lib}"]
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", program, SOURCE, *where, "-ljpeg"], check=True)
    return program


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of Parquet shards in the Hugging Face image layout")
    parser.add_argument(
        "--boxes", required=True, type=pathlib.Path, help="file of boxes; drawn and written if it is missing"
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that all works are taken in turn [default: 5]")
    parser.add_argument("--passes", type=int, default=1, help="passes over the photographs in a round [default: 1]")
    parser.add_argument("--images", type=int, default=0, help="the first N photographs [default: all]")
    parser.add_argument("--seed", type=int, default=1, help="of the boxes that are drawn [default: 1]")
    parser.add_argument("--prefix", help="where another libjpeg-turbo is installed [default: the system's]")
    args = parser.parse_args()
    encoded = photographs(args.data, args.images)
    if not encoded:
        raise SystemExit(f"no photographs in {args.data}")
    if not args.boxes.exists():
        args.boxes.write_text(draw(encoded, args.seed))
    with tempfile.TemporaryDirectory() as folder:
        program = build(folder, args.prefix)
        framed = b"".join(len(data).to_bytes(4, "little") + data for data in encoded)
        done = subprocess.run([program, args.boxes, str(args.rounds), str(args.passes)], input=framed)
    sys.exit(done.returncode)


main()
