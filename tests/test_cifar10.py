"""CIFAR-10 in each of its forms, and its cache."""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError, cifar10, tfds_folder
from data.cache import cache_dir

BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
RECORDS_PER_BATCH = 4
NUM_TRAIN, NUM_TEST = 20, 4


@pytest.fixture(autouse=True)
def _private_folders(tmp_path, monkeypatch):
    for variable in ("XDG_CACHE_HOME", "TFDS_DATA_DIR", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))


@pytest.fixture(scope="module")
def truth():
    """Images and labels, training split first."""
    rng = np.random.default_rng(0)
    num_images = NUM_TRAIN + NUM_TEST
    image = rng.integers(0, 256, (num_images, 32, 32, 3), np.uint8)
    return image, rng.integers(0, 10, num_images).astype(np.int32)


def write_folder(root, truth):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for batch, name in enumerate(BATCHES):
        rows = slice(batch * RECORDS_PER_BATCH, (batch + 1) * RECORDS_PER_BATCH)
        with open(folder / name, "wb") as file:
            for image, label in zip(truth[0][rows], truth[1][rows], strict=True):
                file.write(bytes([label]) + image.transpose(2, 0, 1).tobytes())
    return folder


def write_archive(root, truth):
    folder = write_folder(root / "unpacked", truth)
    archive = root / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


def write_tree(root, classes=CLASSES, size=(6, 5), suffix="png"):
    """Two training images and one test image per class; pixels tell split, class and number."""
    for split, numbers in (("train", (0, 1)), ("test", (0,))):
        for label, cls in enumerate(classes):
            (root / split / cls).mkdir(parents=True)
            for number in numbers:
                color = (label, number, split == "test")
                Image.new("RGB", size, color).save(root / split / cls / f"{number:04}.{suffix}")
    return root


def prepare(data_dir, truth, monkeypatch, published=True):
    """Prepares fixture-size data as a download would, from the place that TFDS looks in first."""
    from tensorflow_datasets.core.download import checksums

    archive = write_archive(data_dir / "downloads" / "manual", truth)
    if published:
        url_infos = checksums.get_all_url_infos()
        (url,) = (url for url in url_infos if url.endswith("/cifar-10-binary.tar.gz"))
        monkeypatch.setitem(url_infos, url, checksums.compute_url_info(archive))
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.setattr(cifar10, "check_reachable", lambda url: None)
    return cifar10.find(download=True).load()


def digests(split):
    """The examples of a split as a sorted list, for comparing whatever their order."""
    return sorted(
        (hashlib.sha256(image.tobytes()).hexdigest(), int(label))
        for image, label in zip(split["image"], split["label"], strict=True)
    )


def assert_is(dataset, truth):
    for split, rows in ((dataset.train, slice(NUM_TRAIN)), (dataset.test, slice(NUM_TRAIN, None))):
        assert split["image"].dtype == np.uint8
        assert split["label"].dtype == np.int32
        assert digests(split) == digests({"image": truth[0][rows], "label": truth[1][rows]})


@pytest.mark.parametrize("form", ["archive", "folder", "parent"])
def test_binary_forms(form, tmp_path, truth):
    match form:
        case "archive":
            path = write_archive(tmp_path, truth)
        case "folder":
            path = write_folder(tmp_path, truth).rename(tmp_path / "any name")
        case "parent":
            path = write_folder(tmp_path / "parent", truth).parent
    source = cifar10.find(path)
    assert source.num_train == NUM_TRAIN
    assert source.description == "CIFAR-10"
    for _ in range(2):
        dataset = source.load()
        np.testing.assert_array_equal(dataset.train["image"], truth[0][:NUM_TRAIN])
        np.testing.assert_array_equal(dataset.train["label"], truth[1][:NUM_TRAIN])
        assert_is(dataset, truth)


def test_an_archive_is_read_again_when_it_changes(tmp_path, truth):
    archive = write_archive(tmp_path / "one", truth)
    assert_is(cifar10.find(archive).load(), truth)
    other = (255 - truth[0], truth[1])
    write_archive(tmp_path / "other", other).replace(archive)
    assert_is(cifar10.find(archive).load(), other)


def set_byte(file, place, value):
    content = bytearray(file.read_bytes())
    content[place] = value
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "data_batch_3.bin").unlink(),
            "data_batch_3.bin: found no such file",
        ),
        (
            lambda folder: (folder / "test_batch.bin").write_bytes(b"\0" * 3072),
            "test_batch.bin: found 3072 bytes, expected a whole number of 3073-byte records",
        ),
        (
            lambda folder: (folder / "data_batch_1.bin").write_bytes(b""),
            "data_batch_1.bin: found 0 bytes",
        ),
        (
            lambda folder: set_byte(folder / "data_batch_2.bin", 2 * 3073, 10),
            "data_batch_2.bin: record 3: found label 10, expected 0 to 9",
        ),
    ],
)
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_damaged_batches(form, damage, message, tmp_path, truth):
    path = write_folder(tmp_path, truth)
    damage(path)
    if form == "archive":
        folder, path = path, tmp_path / "cifar-10-binary.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            tar.add(folder, folder.name)
        message = message.replace("found no such file", "found no member")
        message = re.sub(r"^(\S+): found no member", r"found no member \1", message)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        cifar10.find(path).load()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_archive_is_found_at_once(kept, tmp_path, truth):
    archive = write_archive(tmp_path, truth)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz: found") as error:
        cifar10.find(archive)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("writable", [True, False])
def test_an_archive_of_other_examples_than_counted_is_not_kept(
    writable, tmp_path, truth, monkeypatch
):
    archive = write_archive(tmp_path, truth)
    monkeypatch.setattr(cifar10.cifar_binary, "_PUBLISHED_BYTES", archive.stat().st_size)
    source = cifar10.find(archive)
    if not writable:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with warnings.catch_warnings(action="ignore"), pytest.raises(DataError) as error:
        source.load()
    assert str(error.value) == f"{archive}: found 20 examples in split train, expected 50000"
    assert not writable or os.listdir(cache_dir()) == []


def test_an_archive_with_a_flipped_bit_is_found_at_once(tmp_path, truth):
    archive = write_archive(tmp_path, truth)
    set_byte(archive, -6, archive.read_bytes()[-6] ^ 1)
    with pytest.raises(DataError, match="damaged or truncated"):
        cifar10.find(archive)


def test_a_file_that_is_no_archive(tmp_path):
    file = tmp_path / "data.bin"
    file.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"data\.bin: found a damaged or truncated archive"):
        cifar10.find(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found no such file or folder"),
        ([], "found an empty folder"),
        (["a", "b", "c", "d"], "found a, b, c, ..., expected cifar-10-binary.tar.gz"),
    ],
)
def test_a_path_that_holds_nothing_falls_through_to_nothing(
    content, message, tmp_path, truth, monkeypatch
):
    prepare(tmp_path / "tfds", truth, monkeypatch)
    path = tmp_path / "given"
    if content is not None:
        path.mkdir()
        for name in content:
            (path / name).touch()
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        cifar10.find(path, download=True)


@pytest.mark.parametrize(
    ("classes", "suffix", "description"),
    [
        (CLASSES, "png", "CIFAR-10"),
        (CLASSES, "jpg", "CIFAR-10 (JPEG)"),
        (["sphere", "cube"], "png", "images of tree"),
    ],
)
def test_image_tree(classes, suffix, description, tmp_path):
    tree = write_tree(tmp_path / "tree", classes=classes, suffix=suffix)
    (tree / "train" / classes[0] / ".hidden").touch()
    source = cifar10.find(tree)
    assert source.description == description
    assert source.num_train == 2 * len(classes)
    dataset = source.load()
    assert dataset.num_classes == len(classes)
    for split, images_per_class in ((dataset.train, 2), (dataset.test, 1)):
        assert split["image"].shape == (images_per_class * len(classes), 5, 6, 3)
        np.testing.assert_array_equal(
            split["label"], np.repeat(np.arange(len(classes)), images_per_class)
        )
        if suffix == "png":
            # The red channel is the class's number before they were put in alphabetical order.
            label_of = np.argsort(np.argsort(classes))
            np.testing.assert_array_equal(label_of[split["image"][:, 0, 0, 0]], split["label"])


def test_image_tree_is_decoded_once_and_mapped(tmp_path, monkeypatch):
    tree = write_tree(tmp_path / "tree")
    first = cifar10.find(tree).load()
    assert isinstance(first.train["image"], np.memmap)
    monkeypatch.setattr(cifar10.image_tree, "read", None)
    again = cifar10.find(tree).load()
    np.testing.assert_array_equal(again.train["image"], first.train["image"])


def test_image_tree_is_decoded_again_when_a_file_changes(tmp_path):
    tree = write_tree(tmp_path / "tree")
    before = cifar10.find(tree).load()
    file = tree / "train" / "airplane" / "0000.png"
    Image.new("RGB", (6, 5), (99, 99, 99)).save(file)
    after = cifar10.find(tree).load()
    assert (after.train["image"][0] == 99).all()
    np.testing.assert_array_equal(after.train["image"][1:], before.train["image"][1:])


def test_image_tree_without_a_writable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = cifar10.find(write_tree(tmp_path / "tree"))
    with pytest.warns(UserWarning, match="cannot be kept here"):
        assert source.load().train["image"].shape == (20, 5, 6, 3)


def truncate(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tree: shutil.rmtree(tree / "test"), "tree/test: found no such folder"),
        (lambda tree: shutil.rmtree(tree / "test" / "cat"), "tree/test/cat: found no such folder"),
        (
            lambda tree: shutil.rmtree(tree / "train" / "cat"),
            "tree/train/cat: found no such folder",
        ),
        (
            lambda tree: (tree / "test/cat/0000.png").unlink(),
            "tree/test/cat: found an empty folder",
        ),
        (lambda tree: (tree / "train/list.txt").touch(), "tree/train/list.txt: found a file"),
        (
            lambda tree: [shutil.rmtree(cls) for cls in (tree / "train").iterdir()],
            "tree/train: found an empty folder",
        ),
    ],
)
def test_damaged_image_tree_is_found_at_once(damage, message, tmp_path):
    tree = write_tree(tmp_path / "tree")
    damage(tree)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        cifar10.find(tree)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tree: truncate(tree / "test/cat/0000.png"), "cat/0000.png: found no readable"),
        (lambda tree: (tree / "train/dog/notes.txt").touch(), "notes.txt: found no readable"),
        (
            lambda tree: Image.new("RGB", (6, 6)).save(tree / "test/dog/0000.png"),
            "dog/0000.png: found an image of 6x6 pixels, expected 6x5",
        ),
        (
            lambda tree: Image.new("I;16", (6, 5), 300).save(tree / "test/dog/0000.png"),
            "dog/0000.png: found an image of mode I;16, expected 8 bits a channel",
        ),
        (
            lambda tree: Image.new("F", (6, 5)).save(tree / "train/cat/0000.png", "tiff"),
            "cat/0000.png: found an image of mode F, expected 8 bits a channel",
        ),
    ],
)
def test_damaged_images(damage, message, tmp_path):
    tree = write_tree(tmp_path / "tree")
    damage(tree)
    source = cifar10.find(tree)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        source.load()
    assert "\n" not in str(error.value)
    assert os.listdir(cache_dir()) == []


def test_download_prepares_a_folder_that_all_forms_of_the_path_find(
    tmp_path, truth, monkeypatch, capfd
):
    data_dir = tmp_path / "tfds"
    assert_is(prepare(data_dir, truth, monkeypatch), truth)
    for path in (None, data_dir, data_dir / "cifar10", data_dir / "cifar10" / "3.0.2"):
        source = cifar10.find(path)
        assert source.num_train == NUM_TRAIN
        assert_is(source.load(), truth)
    assert capfd.readouterr() == ("", "")


def test_the_stock_builder_reads_what_was_prepared(tmp_path, truth, monkeypatch):
    import tensorflow_datasets as tfds

    prepare(tmp_path / "tfds", truth, monkeypatch)
    for split, size in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        examples = tfds.data_source("cifar10", split=split, data_dir=tmp_path / "tfds")
        assert len(examples) == size
        assert {e["id"].decode() for e in examples} == {f"{split}_{i:05}" for i in range(size)}


def test_a_download_that_is_not_the_published_archive(tmp_path, truth, monkeypatch):
    with pytest.raises(DataError, match=r"found that downloading failed .*checksum") as error:
        prepare(tmp_path / "tfds", truth, monkeypatch, published=False)
    assert "\n" not in str(error.value)


def test_nothing_prepared_and_no_permission_to_download():
    with pytest.raises(DataError, match=r"cifar10/3\.0\.2: found no such folder"):
        cifar10.find()


def test_nothing_prepared_and_no_network(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="found it unreachable") as error:
        cifar10.find(download=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "dataset_info.json").write_text("{"), "json: found no readable"),
        (
            lambda f: (f / "cifar10-test.array_record-00000-of-00001").unlink(),
            "cifar10-test.array_record-00000-of-00001: found no such file",
        ),
        (lambda f: edit_info(f, fileFormat="tfrecord"), "found file format tfrecord, expected"),
        (lambda f: edit_info(f, name="mnist"), "found the data set mnist, expected cifar10"),
        (lambda f: edit_info(f, splits=[]), "found no split train"),
    ],
)
def test_damaged_prepared_folder_is_found_at_once(damage, message, tmp_path, truth, monkeypatch):
    prepare(tmp_path / "tfds", truth, monkeypatch)
    damage(tmp_path / "tfds" / "cifar10" / "3.0.2")
    for path in (None, tmp_path / "tfds"):
        with pytest.raises(DataError, match=re.escape(message)) as error:
            cifar10.find(path)
        assert "\n" not in str(error.value)


def edit_info(folder, **changes):
    file = folder / "dataset_info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_damaged_prepared_records(tmp_path, truth, monkeypatch):
    prepare(tmp_path / "tfds", truth, monkeypatch)
    folder = tmp_path / "tfds" / "cifar10" / "3.0.2"
    (folder / "cifar10-train.array_record-00000-of-00001").write_bytes(b"damaged")
    with pytest.raises(DataError, match="found split train unreadable"):
        cifar10.find(folder).load()
    with pytest.raises(DataError, match="found 4 examples in split test, expected 5"):
        tfds_folder.read(folder, "test", 5)


@pytest.mark.long
@pytest.mark.skipif("RPS_TEST_DATA" not in os.environ, reason="RPS_TEST_DATA names no folder")
def test_the_real_images(tmp_path):
    with tarfile.open(Path(os.environ["RPS_TEST_DATA"]) / "cifar10-jpeg.tar.xz") as tar:
        # All 60,000 would take half a minute to decode.
        for member in tar:
            if member.isfile() and int(Path(member.name).stem) % 50 == 0:
                tar.extract(member, tmp_path, filter="data")
    (train,) = tmp_path.glob("**/train")
    dataset = cifar10.find(train.parent).load()
    assert dataset.description == "CIFAR-10 (JPEG)"
    assert dataset.train["image"].shape == (1000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(dataset.train["label"]), [100] * 10)
    # The published mean of CIFAR-10 is (125, 123, 114), its standard deviation 63.
    np.testing.assert_allclose(dataset.train["image"].mean((0, 1, 2)), (125, 123, 114), atol=4)


def test_an_unreadable_member_is_not_taken_for_a_batch(tmp_path):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in BATCHES:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.type = tarfile.DIRTYPE
            tar.addfile(member, io.BytesIO())
    with pytest.raises(DataError, match=r"found no member data_batch_1\.bin"):
        cifar10.find(archive)
