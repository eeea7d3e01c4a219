"""CIFAR-10's binary files: the archive `cifar-10-binary.tar.gz` and the folder inside it.

A batch file is a row of 3073-byte records: one label byte, then the 32x32 image, plane by plane
(red, green, blue). Any whole number of records is accepted, so that small files can stand in for
the published ones, which have 10,000 records each.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.dataset import Arrays
from data.errors import DataError

FOLDER = "cifar-10-batches-bin"
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
PUBLISHED_COUNTS = {"train": 50_000, "test": 10_000}
NUM_CLASSES = 10

# An archive of this size need not be unpacked to know what it should hold.
_PUBLISHED_BYTES = 170_052_171
_TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST_FILES = ("test_batch.bin",)
_ALL_FILES = _TRAIN_FILES + _TEST_FILES
_IMAGE_SHAPE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32


def is_folder(folder: Path) -> bool:
    """Returns whether a folder is meant to be the one with the batch files, whole or not."""
    return folder.is_dir() and (
        folder.name == FOLDER or any((folder / name).exists() for name in _ALL_FILES)
    )


def count_in_folder(folder: Path) -> dict[str, int]:
    """Returns the number of examples of "train" and "test", from the sizes of the batch files.

    Raises:
        DataError: A batch file is missing, or not a whole number of records.
    """
    sizes = {}
    for name in _ALL_FILES:
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file}: found no such file, expected a CIFAR-10 batch file")
        sizes[name] = _count_records(str(file), file.stat().st_size)
    return _sum_splits(sizes)


def read_folder(folder: Path) -> tuple[Arrays, Arrays]:
    """Reads the training and the test split: "image" `[N, 32, 32, 3]` and "label" `[N]`.

    Raises:
        DataError: A file has the wrong length, or a record a label out of range.
    """
    return _join_splits(
        {n: _decode(f"{folder / n}", (folder / n).read_bytes()) for n in _ALL_FILES}
    )


def count_in_archive(archive: Path) -> dict[str, int]:
    """Counts as `count_in_folder` does; unpacks the archive unless it has the published size.

    Raises:
        DataError: It is no gzipped tar, is cut short, lacks a batch file, or one of them is not a
            whole number of records.
    """
    if archive.stat().st_size == _PUBLISHED_BYTES:
        return dict(PUBLISHED_COUNTS)
    return _sum_splits(
        {n: _count_records(f"{archive}: {n}", len(content)) for n, content in _members(archive)}
    )


def read_archive(archive: Path) -> tuple[Arrays, Arrays]:
    """Reads the training and the test split, as `read_folder` does.

    Raises:
        DataError: See `count_in_archive` and `read_folder`.
    """
    return _join_splits(
        {n: _decode(f"{archive}: {n}", content) for n, content in _members(archive)}
    )


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of each batch file, and checks the archive to its last byte."""
    found = set()
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                name = Path(member.name).name
                file = tar.extractfile(member) if name in _ALL_FILES else None
                if file is not None:
                    found.add(name)
                    yield name, file.read()
            # tarfile stops before the end of the gzip stream, where the checksum is.
            while stream.read(1 << 20):
                pass
    except (EOFError, tarfile.TarError, zlib.error, OSError) as error:
        raise DataError(
            f"{archive}: found a damaged or truncated archive ({error}), "
            "expected cifar-10-binary.tar.gz"
        ) from error
    if missing := [name for name in _ALL_FILES if name not in found]:
        raise DataError(f"{archive}: found no member {missing[0]}, expected {FOLDER}/{missing[0]}")


def _count_records(where: str, num_bytes: int) -> int:
    if num_bytes == 0 or num_bytes % _RECORD_BYTES:
        raise DataError(
            f"{where}: found {num_bytes} bytes, expected a whole number of "
            f"{_RECORD_BYTES}-byte records"
        )
    return num_bytes // _RECORD_BYTES


def _decode(where: str, content: bytes) -> Arrays:
    num_records = _count_records(where, len(content))
    records = np.frombuffer(content, np.uint8).reshape(num_records, _RECORD_BYTES)
    label = records[:, 0]
    if (bad := np.flatnonzero(label >= NUM_CLASSES)).size:
        raise DataError(
            f"{where}: record {bad[0] + 1}: found label {label[bad[0]]}, "
            f"expected 0 to {NUM_CLASSES - 1}"
        )
    image = records[:, 1:].reshape(-1, *_IMAGE_SHAPE).transpose(0, 2, 3, 1)
    return {"image": np.ascontiguousarray(image), "label": label.astype(np.int32)}


def _sum_splits(counts: dict[str, int]) -> dict[str, int]:
    return {
        "train": sum(counts[name] for name in _TRAIN_FILES),
        "test": sum(counts[name] for name in _TEST_FILES),
    }


def _join_splits(batches: dict[str, Arrays]) -> tuple[Arrays, Arrays]:
    def join(names: tuple[str, ...]) -> Arrays:
        return {
            key: np.concatenate([batches[name][key] for name in names])
            for key in ("image", "label")
        }

    return join(_TRAIN_FILES), join(_TEST_FILES)
