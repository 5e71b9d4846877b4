"""Writes seeds for the fuzz target `jpeg`: small JPEGs, each with nine bytes behind it that choose what is asked.

    python tools/fuzz/corpus.py DIR                                     # tests/fixtures/jpeg
    python tools/fuzz/corpus.py DIR FOLDER[:COUNT]...                   # and Parquet folders, of each COUNT files at most

Folders have the Hugging Face image layout, `image` struct<bytes, path>. Files above 16384 bytes are left out; of the rest COUNT are
taken at even distances. Names are digests: two runs write the same files. Needs pyarrow.
"""
import hashlib
import pathlib
import sys

import pyarrow.parquet as pq

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "jpeg"
LIMIT = 16384 - 9


def jpegs(folder):
    """The small JPEGs of a folder's shards."""
    shards = sorted(pathlib.Path(folder).glob("*.parquet"))
    if not shards:
        sys.exit(f"{folder}: no Parquet files")
    for shard in shards:
        for batch in pq.ParquetFile(shard).iter_batches(columns=["image"]):
            for image in batch.column(0):
                data = image["bytes"].as_py()
                if data and data.startswith(b"\xff\xd8") and len(data) <= LIMIT:
                    yield data


def seeds(argument):
    folder, _, count = argument.partition(":")
    files = list(jpegs(folder))
    step = max(1, len(files) // int(count)) if count else 1
    return files[::step][: int(count) if count else None]


def main(target, *arguments):
    target = pathlib.Path(target)
    target.mkdir(parents=True, exist_ok=True)
    for argument in [str(FIXTURES), *arguments]:
        files = seeds(argument)
        for data in files:
            digest = hashlib.sha256(data).digest()
            # A question that depends on the file only: any flags of the lowest four, any part.
            question = bytes([digest[0] & 15]) + digest[1:9]
            (target / digest.hex()[:16]).write_bytes(data + question)
        print(f"{argument}: {len(files)} files")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
