"""`--profile`: a trace of a few steps."""

import contextlib
import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import launch.train
import rps_jax as rps
from launch.cli.command_line import CommandError
from launch.trainer.profile import Profiler

SMALL = ("--preset", "linear", "--num-workers", "4", "--workers-per-device", "4")


def traced_steps(folder: Path) -> list[int]:
    (trace,) = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train_step"]
    assert list(folder.glob("plugins/profile/*/*.xplane.pb"))
    return sorted(map(int, steps))


@pytest.mark.parametrize(
    ("batch_size", "epochs", "steps"),
    [
        ("32", "2", range(5, 15)),
        ("180", "1", range(1, 2)),
        ("360", "1", range(1)),
    ],
)
@pytest.mark.long
def test_a_profile_is_of_ten_steps_or_the_later_half(
    batch_size: str, epochs: str, steps: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.train, "start_devices", lambda *workers: None)
    flags = ("--batch-size", batch_size, "--epochs", epochs)
    folder = tmp_path / "new" / "profile"
    written = ("--output-dir", str(tmp_path / "run"), "--profile", str(folder))
    assert launch.train.main([*SMALL, *flags, *written]) == 0
    assert traced_steps(folder) == list(steps)


def test_a_profile_that_cannot_be_written_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "profile"
    expected = f"^--profile {folder}: the trace cannot be written .*$"
    with (
        pytest.raises(CommandError, match=expected),
        contextlib.closing(Profiler(folder, 1)) as profiler,
    ):
        profiler.begin()


def test_operations_of_a_step_say_whether_they_are_of_the_exchange() -> None:
    def loss(params, model_state, batch, key):
        return jnp.sum((params - batch) ** 2), model_state

    optimizer, channel = optax.sgd(0.1), rps.Bernoulli(0.1)
    step = rps.make_train_step(loss, optimizer, channel, "workers")
    state = rps.init_train_state(jnp.zeros(4), (), optimizer, channel, 4)
    mapped = jax.vmap(step, in_axes=(None, 0), axis_name="workers")
    names = jax.jit(mapped).lower(state, jnp.ones((4, 4))).as_text(debug_info=True)
    assert "local_step" in names
    assert "exchange" in names
