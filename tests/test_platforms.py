"""Programs for GPUs and TPUs, lowered on a machine that has neither."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from launch.config import PRESETS, parse
from launch.tasks.source import find_source
from launch.trainer.setup import set_up
from rps_jax.mesh import Program

PLATFORMS = ("cuda", "tpu")
N = 4


def write_data(preset: str, folder: Path) -> list[str]:
    """Writes the least data of a preset; returns the flags that name them."""
    if preset == "atis-lstm":
        for split in ("train", "test"):
            (folder / split).mkdir(parents=True)
            lines = {"seq.in": "to rome", "seq.out": "O B-city", "label": "flight"}
            for name, line in lines.items():
                (folder / split / name).write_text(f"{line}\n" * 2 * N)
        return ["--data-path", str(folder)]
    if preset.startswith("cifar10"):
        for split in ("train", "test"):
            for label in ("cat", "dog"):
                (folder / split / label).mkdir(parents=True)
                for number in range(N):
                    image = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
                    image.save(folder / split / label / f"{number}.png")
        return ["--data-path", str(folder)]
    return []


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The texts of all programs of all workers that are called: they are lowered, and not run."""
    found: list[dict[str, str]] = []

    def call(self: Program, *args: Any) -> Any:
        traced = self.jitted.trace(*args)
        texts = {each: traced.lower(lowering_platforms=(each,)).as_text() for each in PLATFORMS}
        found.append(texts)
        return jax.tree.map(lambda out: jnp.ones(out.shape, out.dtype), traced.out_info)

    def lower(self: Program, *args: Any) -> Any:
        return SimpleNamespace(compile=lambda: self)

    monkeypatch.setattr(Program, "__call__", call)
    monkeypatch.setattr(Program, "lower", lower)
    return found


@pytest.mark.parametrize(
    ("preset", "workers_per_device"),
    [
        ("linear", 1),
        *(
            pytest.param(preset, each, marks=pytest.mark.long)
            for preset in PRESETS
            for each in (1, N)
            # The layers of ResNet-110 are those of ResNet-20, several times over.
            if (preset, each) != ("linear", 1) and preset != "cifar10-resnet110"
        ),
    ],
)
def test_every_program_of_every_preset_lowers(
    preset: str, workers_per_device: int, lowered: list[dict[str, str]], tmp_path: Path
) -> None:
    flags = ["--preset", preset, *write_data(preset, tmp_path / "data"), "--num-workers", str(N)]
    flags += ["--workers-per-device", str(workers_per_device), "--batch-size", "2"]
    config = parse(flags)
    setup = set_up(config, find_source(config), tmp_path / "run")
    train, signals = setup.train.arrays, setup.network.mesh.put(np.zeros(N, np.int32))
    order = setup.train_step.order(setup.data_key, train, 0)
    before = len(lowered)
    arguments = setup.run, setup.initial, train, order, signals
    setup.train_step.compile(*arguments)
    setup.train_step(*arguments)
    step = lowered[before]
    setup.evaluator.distances(setup.initial)
    setup.evaluator.model_of(setup.initial, 0)
    setup.evaluator.scores(setup.evaluator.mean_model(setup.initial), setup.train, setup.test)

    assert len(lowered) >= 5
    for text in (text for program in lowered for text in program.values()):
        # What XLA has for every platform, and nothing else.
        assert set(re.findall(r"custom_call @(\w+)", text)) <= {"Sharding"}
    for text in step.values():
        # Among workers that share a device, nothing is sent.
        expected = int(workers_per_device == 1)
        assert text.count("stablehlo.reduce_scatter") == expected
        assert text.count("stablehlo.all_gather") == expected
