"""CIFAR-10 from whatever form of it is there."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data import cifar_binary, image_tree, tfds_folder
from data.cache import cached, fingerprint, read_arrays, write_arrays
from data.dataset import SPLITS, Arrays, Dataset, Source
from data.errors import DataError, os_errors_as_data_errors
from data.network import check_reachable

_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# Where tensorflow-datasets keeps it, inside its data directory.
_TFDS_FOLDER = Path("cifar10", "3.0.2")
_FORMS = (
    "cifar-10-binary.tar.gz, the folder cifar-10-batches-bin, a tree {train,test}/{class}/* of "
    "images, or a folder prepared by tensorflow-datasets"
)

Reader = Callable[[], tuple[Arrays, Arrays]]


def find(path: str | os.PathLike[str] | None = None, *, download: bool = False) -> Source:
    """Returns CIFAR-10, wherever it is.

    The data set has "image" (uint8 `[N, 32, 32, 3]`; an image tree may have another size) and
    "label" (int32 `[N]`). What has to be decoded first (archive, image tree, tensorflow-datasets)
    is kept as arrays in `data.cache.cache_dir()`, and mapped from there ever after.

    Args:
        path: One of: the file `cifar-10-binary.tar.gz`; the folder `cifar-10-batches-bin` or the
            one that holds it; an image tree `{train,test}/{class}/*`; a folder prepared by
            tensorflow-datasets, or the data directory that holds it. If it is none of them, that
            is an error: nothing else is tried. None for what tensorflow-datasets has prepared
            in its own data directory (`$TFDS_DATA_DIR`, or `~/tensorflow_datasets`).
        download: Whether tensorflow-datasets may download and prepare it there, if `path` is
            None and it is absent.

    Raises:
        DataError: The data is absent or damaged, or the network is.
    """
    with os_errors_as_data_errors():
        if path is not None:
            return _find_at(Path(path).expanduser())
        folder = _tfds_data_dir() / _TFDS_FOLDER
        if folder.is_dir():
            return _prepared(folder)
    if not download:
        raise DataError(
            f"{folder}: found no such folder, expected CIFAR-10 prepared by tensorflow-datasets; "
            f"give the path of {_FORMS}, or allow the download"
        )
    check_reachable(cifar_binary.ARCHIVE_URL)
    return Source("CIFAR-10", cifar_binary.PUBLISHED_COUNTS["train"], _download_and_load)


def _find_at(path: Path) -> Source:
    if path.is_file():
        counts = cifar_binary.count_in_archive(path)
        read: Reader = functools.partial(cifar_binary.read_archive, path)
        return _source(
            path, "CIFAR-10", cifar_binary.NUM_CLASSES, counts, read, cache_key_files=[path]
        )
    if not path.is_dir():
        raise DataError(f"{path}: found no such file or folder, expected {_FORMS}")
    for folder in (path, path / cifar_binary.FOLDER):
        if cifar_binary.is_folder(folder):
            read = functools.partial(cifar_binary.read_folder, folder)
            counts = cifar_binary.count_in_folder(folder)
            return _source(folder, "CIFAR-10", cifar_binary.NUM_CLASSES, counts, read)
    if any((path / split).is_dir() for split in SPLITS):
        return _image_tree(path)
    for folder in (path, path / _TFDS_FOLDER.name, path / _TFDS_FOLDER):
        if (folder / "dataset_info.json").is_file():
            return _prepared(folder)
    names = sorted(entry.name for entry in path.iterdir())
    listing = ", ".join(names[:3] + ["..."] * (len(names) > 3)) or "an empty folder"
    raise DataError(f"{path}: found {listing}, expected {_FORMS}")


def _image_tree(root: Path) -> Source:
    tree = image_tree.scan(root)
    # Someone's own images are not to be passed off as CIFAR-10.
    name = "CIFAR-10" if tree.classes == _CLASSES else f"images of {root.resolve().name}"
    paths = {split: tree.paths(split) for split in SPLITS}

    def read() -> tuple[Arrays, Arrays]:
        return image_tree.read(tree, "train"), image_tree.read(tree, "test")

    return _source(
        root,
        f"{name} (JPEG)" if tree.is_jpeg() else name,
        len(tree.classes),
        {split: len(paths[split]) for split in SPLITS},
        read,
        cache_key_files=paths["train"] + paths["test"],
    )


def _prepared(folder: Path) -> Source:
    counts = tfds_folder.count_examples(folder, "cifar10")

    def read_split(split: str) -> Arrays:
        examples = tfds_folder.read(folder, split, counts[split])
        return {
            "image": np.stack([example["image"] for example in examples]),
            "label": np.array([example["label"] for example in examples], np.int32),
        }

    def read() -> tuple[Arrays, Arrays]:
        return read_split("train"), read_split("test")

    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    return _source(
        folder, "CIFAR-10", cifar_binary.NUM_CLASSES, counts, read, cache_key_files=files
    )


def _tfds_data_dir() -> Path:
    # As tensorflow-datasets chooses it; importing that to ask would take a second.
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _download_and_load() -> Dataset:
    from data.cifar_builder import Cifar10

    folder = _tfds_data_dir() / _TFDS_FOLDER
    try:
        tfds_folder.prepare(Cifar10(data_dir=_tfds_data_dir(), file_format=tfds_folder.FILE_FORMAT))
    # Network, checksum, disk: each with an exception and a many-line message of its own.
    except Exception as error:
        # Another process that prepares the same folder may have been faster.
        if not folder.is_dir():
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{folder}: found that downloading failed ({reason}), expected CIFAR-10"
            ) from error
    return _prepared(folder).load()


def _source(
    path: Path,
    description: str,
    num_classes: int,
    counts: dict[str, int],
    read: Reader,
    cache_key_files: Sequence[str | os.PathLike[str]] = (),
) -> Source:
    """Returns a source of `counts` examples; with files to make a key of, a cached one."""

    def read_all() -> tuple[Arrays, Arrays]:
        train, test = read()
        for split, arrays in zip(SPLITS, (train, test), strict=True):
            if (found := len(arrays["label"])) != counts[split]:
                raise DataError(
                    f"{path}: found {found} examples in split {split}, expected {counts[split]}"
                )
        return train, test

    def load() -> Dataset:
        with os_errors_as_data_errors():
            train, test = (
                _load_cached(read_all, counts, cache_key_files) if cache_key_files else read_all()
            )
        return Dataset(description, train, test, "label", num_classes)

    return Source(description, counts["train"], load)


def _load_cached(
    read: Reader, counts: dict[str, int], cache_key_files: Sequence[str | os.PathLike[str]]
) -> tuple[Arrays, Arrays]:
    def build(folder: Path) -> None:
        for split, arrays in zip(SPLITS, read(), strict=True):
            write_arrays(folder / split, arrays)

    def read_back(folder: Path) -> tuple[Arrays, Arrays]:
        train, test = (
            read_arrays(folder / split, {"image": counts[split], "label": counts[split]})
            for split in SPLITS
        )
        return train, test

    return cached(f"cifar10-{fingerprint(cache_key_files)}", build=build, read=read_back)
