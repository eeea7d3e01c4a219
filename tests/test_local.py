"""launch.local: how it shares out this machine, and what it refuses."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import launch.distributed.gpus
import launch.local
from launch.cli.command_line import UsageError
from launch.distributed.gpus import share_gpus, take_gpu, visible_gpus


@pytest.mark.parametrize(
    ("gpus", "processes", "each", "shares"),
    [
        ([], 2, None, [[], []]),
        (["0", "1", "2", "3"], 2, None, [["0", "1"], ["2", "3"]]),
        (["0", "1", "2"], 2, None, [["0"], ["1"]]),
        (["4", "GPU-a"], 2, 1, [["4"], ["GPU-a"]]),
    ],
)
def test_each_process_has_gpus_of_its_own(
    gpus: list[str], processes: int, each: int | None, shares: list[list[str]]
) -> None:
    assert share_gpus(gpus, processes, each) == shares


@pytest.mark.parametrize(
    ("processes", "each", "said"),
    [
        (3, None, "--processes 3: expected at most 2, one a GPU"),
        (2, 2, "--devices-per-process 2: expected at most 1, of 2 GPUs"),
    ],
)
def test_too_few_gpus_are_refused(processes: int, each: int | None, said: str) -> None:
    with pytest.raises(UsageError, match=f"^{said}$"):
        share_gpus(["0", "1"], processes, each)


@pytest.mark.parametrize(
    ("plugins", "environment", "gpus"),
    [
        (["xla_cuda13"], {"CUDA_VISIBLE_DEVICES": "1, 3"}, ["1", "3"]),
        (["xla_cuda13"], {"CUDA_VISIBLE_DEVICES": ""}, []),
        (["xla_cuda13"], {"CUDA_VISIBLE_DEVICES": "-1"}, []),
        (["xla_cuda13"], {"CUDA_VISIBLE_DEVICES": "0", "JAX_PLATFORMS": "cpu"}, []),
        ([], {"CUDA_VISIBLE_DEVICES": "0"}, []),
    ],
)
def test_the_gpus_that_jax_would_use(
    monkeypatch: pytest.MonkeyPatch,
    plugins: list[str],
    environment: dict[str, str],
    gpus: list[str],
) -> None:
    found = [SimpleNamespace(name=name) for name in plugins]
    monkeypatch.setattr(launch.distributed.gpus, "entry_points", lambda group: found)
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert visible_gpus() == gpus


@pytest.mark.parametrize(
    ("gpus", "processes", "taken"),
    [
        (["1", "3"], 2, [("1", None), ("3", None)]),
        (["0", "1", "2"], 1, [("0", None)]),
        (["4", "5"], 3, [("4", "0.375"), ("5", None), ("4", "0.375")]),
        ([], 2, [(None, None)] * 2),
    ],
)
def test_workers_of_a_host_take_a_gpu_each_or_share_it(
    monkeypatch: pytest.MonkeyPatch,
    gpus: list[str],
    processes: int,
    taken: list[tuple[str | None, str | None]],
) -> None:
    monkeypatch.setattr(launch.distributed.gpus, "visible_gpus", lambda: gpus)
    for place, expected in enumerate(taken):
        monkeypatch.setattr(os, "environ", {})
        take_gpu(place, processes)
        named = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION")
        assert tuple(map(os.environ.get, named)) == expected


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--processes", "3"), "--processes 3: expected a divisor of 16 workers"),
        (("--processes", "0"), "--processes 0: expected at least 1"),
        (("--devices-per-process", "3"), "--devices-per-process 3: expected a divisor of the 8"),
        (("--max-restarts", "-1"), "--max-restarts -1: expected at least 0"),
        (("--heartbeat-timeout", "1"), "--heartbeat-timeout 1.0: expected at least 3 seconds"),
        (("--", "--epochs", "0"), "--epochs 0: expected at least 1"),
        (
            ("--max-restarts", "1", "--", "--record", "a.npz"),
            "--record a.npz is not allowed beside --max-restarts",
        ),
        (
            *[("--", "--coordinator", "a:1", "--num-processes", "2", "--process-id", "0")],
            "--coordinator a:1 is not allowed after --",
        ),
        (("--", "--preset", "atis-lstm", "--data-path", "absent"), "--data-path absent: found no"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_a_process_is_started(
    argv: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "/absent")
    assert launch.local.main(list(argv)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert list(tmp_path.iterdir()) == []
