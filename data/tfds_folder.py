"""Data sets prepared by tensorflow-datasets, without TensorFlow.

Only array_record files can be read, and safely written, without TensorFlow.
"""

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.dataset import SPLITS
from data.errors import DataError

FILE_FORMAT = "array_record"


def count_examples(folder: Path, name: str) -> dict[str, int]:
    """Returns the number of examples of "train" and "test", without importing tensorflow-datasets.

    Args:
        folder: A prepared data set: the folder that holds `dataset_info.json`.
        name: Name of the data set that it should be.

    Raises:
        DataError: The folder is incomplete, of another data set, or in a format that needs
            TensorFlow.
    """
    info_file = folder / "dataset_info.json"
    try:
        info = json.loads(info_file.read_bytes())
        found_name, file_format = info["name"], info.get("fileFormat", "tfrecord")
        shards = {
            split["name"]: [int(length) for length in split["shardLengths"]]
            for split in info["splits"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{info_file}: found no readable description, expected that of a data set prepared "
            "by tensorflow-datasets"
        ) from error
    if found_name != name:
        raise DataError(f"{info_file}: found the data set {found_name}, expected {name}")
    if file_format != FILE_FORMAT:
        raise DataError(
            f"{info_file}: found file format {file_format}, expected {FILE_FORMAT}, the one that "
            "can be read without TensorFlow"
        )
    for split in SPLITS:
        if split not in shards:
            raise DataError(f"{info_file}: found no split {split}, expected train and test")
    for split, lengths in shards.items():
        for i in range(len(lengths)):
            file = folder / f"{name}-{split}.{FILE_FORMAT}-{i:05d}-of-{len(lengths):05d}"
            if not file.is_file():
                raise DataError(f"{file}: found no such file, expected it by {info_file.name}")
    return {split: sum(shards[split]) for split in SPLITS}


def read(folder: Path, split: str, num_examples: int) -> list[dict[str, Any]]:
    """Returns the decoded examples of a split, in the order in which they are stored.

    Raises:
        DataError: The files cannot be read, or do not hold `num_examples` examples.
    """
    import tensorflow_datasets as tfds

    try:
        with _quiet():
            source = tfds.builder_from_directory(folder).as_data_source(split)
            examples = [source[i] for i in range(len(source))]
    # What a damaged file raises depends on its bytes: array_record and the feature decoders
    # have no error in common.
    except Exception as error:
        raise DataError(
            f"{folder}: found split {split} unreadable ({type(error).__name__}), expected a data "
            "set prepared by tensorflow-datasets"
        ) from error
    if len(examples) != num_examples:
        raise DataError(
            f"{folder}: found {len(examples)} examples in split {split}, expected {num_examples}"
        )
    return examples


def prepare(builder: Any, manual_dir: Path | None = None) -> Path:
    """Lets a `tfds.core.GeneratorBasedBuilder` write its data set.

    Args:
        builder: The builder, with the file format `FILE_FORMAT`.
        manual_dir: The folder of the source files, for a builder that downloads none.

    Returns:
        The folder with the data set.
    """
    import tensorflow_datasets as tfds

    with _quiet():
        config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
        builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps tensorflow-datasets from printing, logging and drawing progress bars."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
