"""Public data sets in the layouts they are published in, as folders for scripts.make_dataset_csv.

    python -m scripts.unpack_dataset parquet train-00000-of-00004.parquet … --name genimage --ai 1 --real 0
    python -m scripts.unpack_dataset diffusiondb part-000001.zip … --metadata metadata.parquet

parquet: a data set of Hugging Face: a column with each image's bytes, one with its label (--ai and --real say which is
which; without --real and --label every image is AI). diffusiondb: its zip parts; with the metadata, images it marks as
unsafe are left out. Files go to --out/ai/NAME and --out/real/NAME, at most --most of a label, spread over the whole.

The sets on Kaggle (cifake, 140k-real-and-fake-faces and the like) come as folders named real and fake: unpack them and
name the folder to scripts.make_dataset_csv. Nothing here downloads; read each set's licence.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ingress.sources import IMAGE_SUFFIXES
from utils.errors import BadSettings, TableError
from utils.exits import Exit, command, command_parser
from utils.persistence import safe_name, write_atomic
from utils.settings import load_settings

UNSAFE = 0.5  # DiffusionDB's own score, 0..1; 2 where its authors' filter took the image away


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    largest = load_settings().decode.max_bytes
    found = _of_parquet(arguments) if arguments.layout == "parquet" else _of_diffusiondb(arguments, largest)
    counts = {"real": 0, "ai": 0}
    for label, name, raw in found:
        if counts[label] < arguments.most and 0 < len(raw) <= largest:
            folder = arguments.out / label / arguments.name
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / safe_name(name), raw)
            counts[label] += 1
    if not sum(counts.values()):
        raise TableError(f"no image in {', '.join(map(str, arguments.files))}")
    print(
        f"wrote {counts['real']} real and {counts['ai']} AI images below {arguments.out}; "
        f"next: python -m scripts.make_dataset_csv {arguments.out}"
    )
    return Exit.DONE


def _of_parquet(arguments: argparse.Namespace) -> Iterator[tuple[str, str, bytes]]:
    labels = {str(arguments.ai): "ai", str(arguments.real): "real"}
    for path in arguments.files:
        columns = [arguments.image, *([arguments.label] if arguments.label else [])]
        for number, row in enumerate(_rows(path, columns)):
            image = row[arguments.image]
            raw, inner = (image["bytes"], image.get("path")) if isinstance(image, dict) else (image, None)
            label = labels.get(str(row[arguments.label])) if arguments.label else "ai"
            if label and isinstance(raw, bytes):
                yield label, f"{path.stem}-{number}-{Path(inner or 'image.png').name}", raw


def _of_diffusiondb(arguments: argparse.Namespace, largest: int) -> Iterator[tuple[str, str, bytes]]:
    unsafe = set()
    if arguments.metadata:
        for row in _rows(arguments.metadata, ["image_name", "image_nsfw"]):
            if (row["image_nsfw"] or 0) > UNSAFE:
                unsafe.add(row["image_name"])
    share = -(-arguments.most // len(arguments.files))
    for path in arguments.files:
        try:
            with zipfile.ZipFile(path) as parts:
                inside = [each for each in parts.infolist() if each.filename.lower().endswith(IMAGE_SUFFIXES)]
                good = [each for each in inside if Path(each.filename).name not in unsafe and each.file_size <= largest]
                for each in good[:share]:
                    yield "ai", Path(each.filename).name, parts.read(each)
        except (OSError, zipfile.BadZipFile) as error:
            raise TableError(f"{path} is not a zip part of DiffusionDB: {error}") from error


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise BadSettings("reading Parquet needs pyarrow: pip install pyarrow") from error
    try:
        file = parquet.ParquetFile(path)
        if absent := [name for name in columns if name not in file.schema_arrow.names]:
            raise TableError(f"{path} has no column {', '.join(absent)}; it has {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(64, columns=list(columns)):
            yield from batch.to_pylist()
    except (OSError, ArrowException) as error:
        raise TableError(f"{path} cannot be read as Parquet: {error}") from error


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.unpack_dataset", __doc__)
    parser.add_argument("layout", choices=("parquet", "diffusiondb"))
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument("--name", default="", help="source that the images get (default: the layout or the first file)")
    parser.add_argument("--most", type=int, default=2000, help="images of a label at most (default: %(default)s)")
    parser.add_argument("--image", default="image", help="parquet: column of the images (default: %(default)s)")
    parser.add_argument("--label", default="", help="parquet: column of the labels; with --real: label")
    parser.add_argument("--ai", default="1", help="parquet: label of AI images (default: %(default)s)")
    parser.add_argument("--real", help="parquet: label of real images")
    parser.add_argument("--metadata", type=Path, help="diffusiondb: its metadata.parquet")
    arguments = parser.parse_args(argv)
    arguments.label = arguments.label or ("label" if arguments.real is not None else "")
    default = arguments.layout if arguments.layout == "diffusiondb" else arguments.files[0].stem
    arguments.name = safe_name(arguments.name or default)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
