"""ATIS: slot filling on sentences about air travel, read through tensorflow-datasets."""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from data import tfds_folder
from data.cache import CacheMiss, cached
from data.dataset import SPLITS, Dataset, Source
from data.errors import DataError, os_errors_as_data_errors
from data.slot_files import FILES, Sentence, read_sentences

PAD, UNKNOWN = "<pad>", "<unk>"
OUTSIDE = "O"

_UNKNOWN_ID = 1

Splits = dict[str, list[Sentence]]


def find(path: str | os.PathLike[str]) -> Source:
    """Returns ATIS from a folder `{train,test}/{seq.in,seq.out,label}`, fully checked.

    The data set has "tokens" and "tags" (int32 `[N, L]`, L the longest sentence of both splits),
    "length" (int32 `[N]`) and "intent" (int32 `[N]`).

    - Token 0 is padding; token 1 stands for words that the training split does not have.
    - Tag 0 is "O", which padding holds too: mask by "length" (or by token 0), not by tag.
    - Tags that only the test split has get ids from `num_classes` on. The classifier has no
      output for them, so that a slot of that kind is counted as missed, as it should be; a loss
      over the test split must leave those positions out. Intents are numbered alike.

    Args:
        path: The folder. Other folders in it, such as `dev`, are not read.

    Raises:
        DataError: A file is missing or damaged; see `data.slot_files.read_sentences`.
    """
    folder = Path(path).expanduser()
    with os_errors_as_data_errors():
        if not folder.is_dir():
            raise DataError(
                f"{folder}: found no such folder, expected one with train and test in it"
            )
        counts = {split: len(read_sentences(folder / split)) for split in SPLITS}
    return Source(
        description="ATIS",
        num_train=counts["train"],
        load=functools.partial(_load, folder, counts),
    )


def _load(folder: Path, counts: dict[str, int]) -> Dataset:
    # The key is that of the contents: a copy prepared from other files is never read.
    splits = cached(
        f"atis-{_hash_files(folder)}",
        build=functools.partial(_prepare, folder.resolve()),
        read=functools.partial(_read, counts=counts),
    )
    return _encode(splits["train"], splits["test"])


def _hash_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        for name in FILES:
            content = (folder / split / name).read_bytes()
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:32]


def _prepare(source: Path, target: Path) -> None:
    from data.atis_builder import Atis

    tfds_folder.prepare(
        Atis(data_dir=target, file_format=tfds_folder.FILE_FORMAT), manual_dir=source
    )


def _read(target: Path, counts: dict[str, int]) -> Splits:
    from data.atis_builder import Atis

    folder = target / Atis.name / str(Atis.VERSION)
    try:
        if (found := tfds_folder.count_examples(folder, Atis.name)) != counts:
            raise CacheMiss(f"{folder}: found {found} sentences, expected {counts}")
        return {
            split: [_decode(example) for example in tfds_folder.read(folder, split, count)]
            for split, count in counts.items()
        }
    except DataError as error:
        raise CacheMiss(str(error)) from error


def _decode(example: dict[str, Any]) -> Sentence:
    return Sentence(
        tokens=tuple(token.decode() for token in example["tokens"]),
        tags=tuple(tag.decode() for tag in example["tags"]),
        intent=example["intent"].decode(),
    )


def _encode(train: list[Sentence], test: list[Sentence]) -> Dataset:
    words = sorted({token for sentence in train for token in sentence.tokens})
    tokens = (PAD, UNKNOWN, *words)
    tags, num_tags = _train_first([s.tags for s in train], [s.tags for s in test], OUTSIDE)
    intents, _ = _train_first([(s.intent,) for s in train], [(s.intent,) for s in test])

    token_id = {token: i for i, token in enumerate(tokens)}
    tag_id = {tag: i for i, tag in enumerate(tags)}
    intent_id = {intent: i for i, intent in enumerate(intents)}
    longest = max(len(sentence.tokens) for sentence in train + test)

    def arrays(sentences: list[Sentence]) -> dict[str, np.ndarray]:
        token_ids, tag_ids = np.zeros((2, len(sentences), longest), np.int32)
        for row, sentence in enumerate(sentences):
            length = len(sentence.tokens)
            token_ids[row, :length] = [token_id.get(t, _UNKNOWN_ID) for t in sentence.tokens]
            tag_ids[row, :length] = [tag_id[tag] for tag in sentence.tags]
        return {
            "tokens": token_ids,
            "tags": tag_ids,
            "length": np.array([len(s.tokens) for s in sentences], np.int32),
            "intent": np.array([intent_id[s.intent] for s in sentences], np.int32),
        }

    return Dataset(
        description="ATIS",
        train=arrays(train),
        test=arrays(test),
        label_key="intent",
        num_classes=num_tags,
        tokens=tokens,
        tags=tags,
    )


def _train_first(
    train: list[tuple[str, ...]], test: list[tuple[str, ...]], *first: str
) -> tuple[tuple[str, ...], int]:
    """Orders names: `first`, others of train, those of test alone. Counts all but the last."""
    in_train = set().union(*train) - set(first)
    only_test = set().union(*test) - in_train - set(first)
    return (*first, *sorted(in_train), *sorted(only_test)), len(first) + len(in_train)
