"""Images as a tree of files: `{train,test}/{class}/*`, one folder per class."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.dataset import SPLITS, Arrays
from data.errors import DataError

_JPEG_SUFFIXES = (".jpg", ".jpeg")
# Pillow's modes of more than 8 bits a channel, which it clips to 255 instead of scaling.
_DEEP_MODES = ("I", "F")


@dataclass(frozen=True)
class ImageTree:
    """The list of a tree's files.

    Attributes:
        root: The folder that holds `train` and `test`.
        classes: Names of the classes in alphabetical order, which numbers them.
        files: For each split, for each class, the names of its files in alphabetical order.
    """

    root: Path
    classes: tuple[str, ...]
    files: dict[str, tuple[tuple[str, ...], ...]]

    def paths(self, split: str) -> list[str]:
        """Returns the path of every image of a split, class by class."""
        return [
            os.path.join(self.root, split, cls, name)
            for cls, names in zip(self.classes, self.files[split], strict=True)
            for name in names
        ]

    def is_jpeg(self) -> bool:
        """Returns whether any file is a JPEG, by its name: its pixels have lost something."""
        return any(path.lower().endswith(_JPEG_SUFFIXES) for path in self.paths("train"))


def scan(root: Path) -> ImageTree:
    """Lists a tree. Hidden files are passed over; every other one must be an image.

    Raises:
        DataError: A split or class is missing or empty, or the splits differ in their classes.
    """
    listing = {split: _scan_split(root / split) for split in SPLITS}
    classes = tuple(sorted(listing["train"]))
    if unmatched := sorted(set(classes) ^ set(listing["test"])):
        absent = "test" if unmatched[0] in listing["train"] else "train"
        raise DataError(
            f"{root / absent / unmatched[0]}: found no such folder, "
            "expected train and test to have the same classes"
        )
    files = {split: tuple(listing[split][cls] for cls in classes) for split in SPLITS}
    return ImageTree(root, classes, files)


def _scan_split(folder: Path) -> dict[str, tuple[str, ...]]:
    if not folder.is_dir():
        raise DataError(f"{folder}: found no such folder, expected one folder per class in it")
    names_of = {}
    for cls in _visible(folder):
        if not (folder / cls).is_dir():
            raise DataError(f"{folder / cls}: found a file, expected one folder per class")
        names = _visible(folder / cls)
        if not names:
            raise DataError(f"{folder / cls}: found an empty folder, expected images")
        names_of[cls] = tuple(names)
    if not names_of:
        raise DataError(f"{folder}: found an empty folder, expected one folder per class")
    return names_of


def _visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def read(tree: ImageTree, split: str) -> Arrays:
    """Decodes a split: "image" (uint8 `[N, H, W, 3]`) and "label" (int32 `[N]`).

    Raises:
        DataError: A file is no readable image, has more than 8 bits a channel, or differs in size
            from the first one.
    """
    paths = tree.paths(split)
    # The size is that of the first training image, so that both splits have one.
    height, width, _ = _decode(tree.paths("train")[0]).shape
    image = np.empty((len(paths), height, width, 3), np.uint8)

    # One thread: Pillow spends its time on such small images holding the interpreter lock.
    for row, path in enumerate(paths):
        pixels = _decode(path)
        if pixels.shape != image.shape[1:]:
            raise DataError(
                f"{path}: found an image of {pixels.shape[1]}x{pixels.shape[0]} pixels, "
                f"expected {width}x{height} like the first"
            )
        image[row] = pixels
    sizes = [len(names) for names in tree.files[split]]
    label = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return {"image": image, "label": label}


def _decode(path: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            mode, pixels = picture.mode, np.asarray(picture.convert("RGB"))
    # Pillow's decoders raise nearly anything for damaged input (SyntaxError and struct.error
    # among others), and a bomb of a size raises its own.
    except Exception as error:
        raise DataError(
            f"{path}: found no readable image ({type(error).__name__}), expected a whole one"
        ) from error
    if mode.startswith(_DEEP_MODES):
        raise DataError(f"{path}: found an image of mode {mode}, expected 8 bits a channel")
    return pixels
