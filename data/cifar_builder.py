"""CIFAR-10's tensorflow-datasets builder, without TensorFlow. Importing this imports the former."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar

from data.cifar_binary import read_archive


# Not registered, and named as the stock builder, which reads what this one prepares.
class Cifar10(cifar.Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """The stock builder, but for the steps that need TensorFlow: unpacking and encoding images."""

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        # Downloaded and checksummed, not extracted.
        train, test = read_archive(Path(dl_manager.download(self._cifar_info.url)))
        return {
            "train": self._generate_examples("train_", train),
            "test": self._generate_examples("test_", test),
        }

    def _generate_examples(
        self, prefix: str, arrays: dict[str, np.ndarray]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(arrays["image"], arrays["label"], strict=True)):
            yield (
                index,
                {
                    "id": f"{prefix}{index:05d}",
                    "image": Image.fromarray(image),
                    "label": int(label),
                },
            )
