"""Reads an ingested folder the way other tools do, and holds it against its manifest.

    python tools/check_ingest.py DIR

Uses pyarrow (data set and single files), and pandas, DuckDB and `datasets` where they are installed. Prints one line a reader and
fails with a message on the first difference. Run with pyarrow 26.0.1, pandas 3.1.1, DuckDB 2.0.1, datasets 5.2.0, Pillow 13.0.0.
"""

import importlib.util
import io
import json
import pathlib
import sys

import pyarrow.dataset
import pyarrow.parquet
from PIL import Image


def main(folder):
    folder = pathlib.Path(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [shard["name"] for shard in manifest["shards"]]
    assert sorted(p.name for p in folder.iterdir()) == sorted(names + ["manifest.json"]), "other files in the folder"

    rows = 0
    for shard in manifest["shards"]:
        path = folder / shard["name"]
        file = pyarrow.parquet.ParquetFile(path)
        meta = file.metadata
        assert path.stat().st_size == shard["bytes"], path
        assert (meta.num_rows, meta.num_row_groups) == (shard["samples"], shard["row_groups"]), path
        image = file.schema_arrow.field("image").type
        assert [image.field(i).name for i in range(2)] == ["bytes", "path"], image
        features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        assert features["image"] == {"_type": "Image"}
        if manifest["label_names"]:
            assert features["label"] == {"names": manifest["label_names"], "_type": "ClassLabel"}
        for group in range(meta.num_row_groups):
            column = meta.row_group(group).column(0)
            assert column.path_in_schema == "image.bytes" and column.compression == "UNCOMPRESSED"
            assert "RLE_DICTIONARY" not in column.encodings, column.encodings
        rows += meta.num_rows
    assert rows == manifest["samples"]
    print(f"pyarrow.parquet: {len(names)} shards, {rows} rows, as the manifest says")

    table = pyarrow.dataset.dataset([str(folder / n) for n in names], format="parquet").to_table()
    sizes = [len(r["bytes"]) for r in table.column("image").to_pylist()]
    assert sum(sizes) == manifest["image_bytes"]
    for row in table.slice(0, 20).to_pylist():
        Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").load()
        if "label" in row and row["label"] is not None and manifest["label_names"]:
            assert 0 <= row["label"] < len(manifest["label_names"])
    print(f"pyarrow.dataset: {table.num_rows} rows, {sum(sizes)} image bytes, 20 decoded by Pillow")

    if importlib.util.find_spec("pandas"):
        import pandas

        frame = pandas.concat(pandas.read_parquet(folder / n) for n in names)
        assert len(frame) == rows and isinstance(frame["image"].iloc[0]["bytes"], bytes)
        print(f"pandas: {len(frame)} rows, columns {list(frame.columns)}")
    if importlib.util.find_spec("duckdb"):
        import duckdb

        count, total = duckdb.sql(
            f"select count(*), sum(octet_length(image.bytes)) from read_parquet('{folder}/*.parquet')"
        ).fetchall()[0]
        assert (count, total) == (rows, sum(sizes))
        print(f"duckdb: {count} rows, {total} image bytes")
    if importlib.util.find_spec("datasets"):
        import datasets

        data = datasets.load_dataset("parquet", data_files=[str(folder / n) for n in names], split="train")
        assert len(data) == rows and isinstance(data.features["image"], datasets.Image), data.features
        data[0]["image"].convert("RGB").load()
        if manifest["label_names"]:
            assert data.features["label"].names == manifest["label_names"]
        print(f"datasets: {len(data)} rows, features {data.features}")


main(sys.argv[1])
