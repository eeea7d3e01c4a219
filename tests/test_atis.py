"""ATIS: its files, its ids, and what is refused."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from data import DataError, atis
from data.cache import cache_dir

TRAIN = [
    ("show flights to boston", "O O O B-city", "flight"),
    ("fares to new york", "O O B-city I-city", "airfare"),
    ("to boston", "O B-city", "flight"),
]
TEST = [
    ("show caf\u00e9s\u0085in boston now", "O O O B-city B-time", "meal"),
    ("flights to boston", "O O B-city", "flight"),
]


@pytest.fixture(autouse=True)
def _private_folders(tmp_path, monkeypatch):
    for variable in ("XDG_CACHE_HOME", "TFDS_DATA_DIR", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))


def write(root, train=TRAIN, test=TEST):
    for split, sentences in (("train", train), ("test", test)):
        (root / split).mkdir(parents=True, exist_ok=True)
        for name, column in zip(
            ("seq.in", "seq.out", "label"), zip(*sentences, strict=True), strict=True
        ):
            (root / split / name).write_bytes("".join(f"{x}\n" for x in column).encode())
    return root


@pytest.fixture
def corpus(tmp_path):
    return write(tmp_path / "corpus")


def test_reads_what_was_written(corpus):
    source = atis.find(corpus)
    assert source.num_train == 3
    dataset = source.load()
    for split, sentences in ((dataset.train, TRAIN), (dataset.test, TEST)):
        assert {key: (x.shape, x.dtype) for key, x in split.items()} == {
            "tokens": ((len(sentences), 5), np.int32),
            "tags": ((len(sentences), 5), np.int32),
            "length": ((len(sentences),), np.int32),
            "intent": ((len(sentences),), np.int32),
        }
        for row, (words, tags, _) in enumerate(sentences):
            length = split["length"][row]
            assert [dataset.tags[i] for i in split["tags"][row, :length]] == tags.split()
            known = {word for words, _, _ in TRAIN for word in words.split()}
            assert [dataset.tokens[i] for i in split["tokens"][row, :length]] == [
                word if word in known else atis.UNKNOWN for word in words.split()
            ]
            assert not split["tokens"][row, length:].any()
            assert not split["tags"][row, length:].any()


def test_numbers_what_training_has_first(corpus):
    dataset = atis.find(corpus).load()
    assert dataset.tokens[:2] == (atis.PAD, atis.UNKNOWN)
    assert dataset.tags == ("O", "B-city", "I-city", "B-time")
    assert dataset.num_classes == 3
    assert dataset.train["tags"].max() < dataset.num_classes
    assert dataset.test["tags"].max() == dataset.num_classes
    assert dataset.train["intent"].tolist() == [1, 0, 1]
    assert dataset.test["intent"].tolist() == [2, 1]


def test_a_last_line_needs_no_newline(corpus):
    for file in (corpus / "train").iterdir():
        file.write_bytes(file.read_bytes().removesuffix(b"\n"))
    assert atis.find(corpus).num_train == 3


def test_prints_nothing(corpus, capfd):
    atis.find(corpus).load()
    assert capfd.readouterr() == ("", "")


def test_a_copy_prepared_from_other_files_is_not_read(corpus):
    atis.find(corpus).load()
    before = (corpus / "train" / "label").stat()
    write(corpus, train=[(words, tags, "quantity") for words, tags, _ in TRAIN])
    os.utime(corpus / "train" / "label", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert atis.find(corpus).load().train["intent"].tolist() == [0, 0, 0]


def test_a_damaged_prepared_copy_is_made_again(corpus):
    first = atis.find(corpus).load()
    for record in cache_dir().rglob("*array_record*"):
        record.write_bytes(b"damaged")
    again = atis.find(corpus).load()
    np.testing.assert_array_equal(again.train["tokens"], first.train["tokens"])
    assert len(os.listdir(cache_dir())) == 1


def replace(name, content):
    return lambda root: (root / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "corpus: found no such folder, expected"),
        (lambda root: shutil.rmtree(root / "test"), "test/seq.in: found no such file"),
        (lambda root: (root / "train/label").unlink(), "train/label: found no such file"),
        (replace("train/seq.in", b""), "train/seq.in: found an empty file"),
        (replace("train/seq.out", b"O O O B-city\n"), "seq.out: found 1 lines, expected 3"),
        (replace("test/label", b"a\nb\nc\n"), "test/label: found 3 lines, expected 2"),
        (
            replace("train/seq.out", b"O O O B-city\nO O B-city\nO B-city\n"),
            "train/seq.out: line 2: found 3 tags, expected 4",
        ),
        (
            replace("train/seq.in", b"show flights to boston\n \nto boston\n"),
            "train/seq.in: line 2: found no words",
        ),
        (replace("test/label", b"flight\n\n"), "test/label: line 2: found 0 words"),
        (
            replace("test/seq.in", b"flights to boston\nto caf\xe9\n"),
            "test/seq.in: line 2: found the byte 0xe9, expected UTF-8",
        ),
    ],
)
def test_damage_is_found_at_once(corpus, damage, message):
    damage(corpus)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        atis.find(corpus)
    assert str(corpus) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif("RPS_TEST_DATA" not in os.environ, reason="RPS_TEST_DATA names no folder")
def test_the_real_corpus():
    source = atis.find(Path(os.environ["RPS_TEST_DATA"]) / "atis")
    dataset = source.load()
    assert source.num_train == len(dataset.train["length"]) == 4478
    assert len(dataset.test["length"]) == 893
    assert dataset.train["tokens"].shape[1] == 46
    assert (dataset.num_classes, len(dataset.tags)) == (120, 126)
    assert len(dataset.tokens) == 867 + 2
