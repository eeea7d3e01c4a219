"""ATIS as a tensorflow-datasets builder. Importing this imports tensorflow-datasets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data.slot_files import read_sentences


# Not registered: `tfds.load("atis")` is no business of this project.
class Atis(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The Airline Travel Information System corpus: sentences with slot tags and an intent.

    Tags and intents are text, not `ClassLabel`: the test split has some that training lacks.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "A folder with train/ and test/, each with seq.in, seq.out and label."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        words = tfds.features.Sequence(tfds.features.Text())
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {"tokens": words, "tags": words, "intent": tfds.features.Text()}
            ),
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        folder = Path(dl_manager.manual_dir)
        return {split: self._generate_examples(folder / split) for split in ("train", "test")}

    def _generate_examples(self, folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, sentence in enumerate(read_sentences(folder)):
            yield index, sentence._asdict()
