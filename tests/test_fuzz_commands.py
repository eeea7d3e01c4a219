"""Whatever is given to any flag of any command: it runs, or says in one line why not.

The flags are found at the fields of the options, so that a new one is tried by being there. Only
the long work is left out; everything that comes before it is real.
"""

import contextlib
import importlib
import random
import re
import types
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NoReturn

import pytest

import launch.bench
import launch.benchmarks.metrics
import launch.cluster.ray
import launch.colocate
import launch.compare
import launch.distributed.job
import launch.figures.figure
import launch.figures.search
import launch.hosts
import launch.local
import launch.plan
import launch.reproduce
import launch.tensorboard
import launch.theory
import launch.train
import launch.trainer.many_runs
import rps_jax.colocation.validation
import rps_jax.theory
from data import cifar10
from launch.config import TrainConfig

_NUMBERS = ("0", "-1", "1", "2", "0.5", "nan", "inf", "x", "", "²", "٣", "99999999999999999999")
HOSTILE = {
    int: [*_NUMBERS, "3", "16", "5000", "1000000", "2147483648", "4294967296"],
    float: [*_NUMBERS, "0.1", "5000", "-0.0", "-inf", "1e30", "1e308", "1e-308"],
    str: ["", "x", "a:1", "a..b:5", "a" * 70 + ":5", "a:99999", "true", "true 'x", "%s", "é"],
    Path: ["", "new", "folder", "file", "dangling", "loop", "file/x", "/proc/x", "é" * 200],
    bool: [],
}

Main = Callable[[Sequence[str]], int]


def options_of(module: ModuleType) -> tuple[type, type | None]:
    """Returns the options of a command that is a module, and what may follow them after `--`."""
    (config,) = (
        found
        for name, found in vars(module).items()
        if name.endswith("Config") and found.__module__.startswith(module.__name__)
    )
    return config, TrainConfig if hasattr(module, "split_arguments") else None


# The subcommands that are modules: a new one is tried by being there.
MODULES = {
    f"{command.__name__.removeprefix('launch.')} {name}": (
        command.main,
        importlib.import_module(f"{package}.{name}"),
    )
    for command, package in (
        (launch.bench, "launch.benchmarks"),
        (launch.colocate, "launch.colocation"),
    )
    for name in command.COMMANDS
}
COMMANDS: dict[str, tuple[Main, type, type | None]] = {
    "train": (launch.train.main, TrainConfig, None),
    "local": (launch.local.main, launch.local.LocalConfig, TrainConfig),
    "hosts --hostfile hosts": (launch.hosts.main, launch.hosts.HostsConfig, TrainConfig),
    "cluster.ray": (launch.cluster.ray.main, launch.cluster.ray.RayConfig, TrainConfig),
    "compare": (launch.compare.main, launch.compare.CompareConfig, TrainConfig),
    "theory": (launch.theory.main, launch.theory.TheoryConfig, None),
    "theory plan": (launch.theory.main, launch.plan.PlanConfig, None),
    "tensorboard": (launch.tensorboard.main, launch.tensorboard.TensorBoardConfig, None),
    **{
        f"reproduce {figure}": (
            launch.reproduce.main,
            launch.figures.figure.FigureConfig,
            None,
        )
        for figure in ("fig4a", "fig5c --data-path atis")
    },
    "reproduce search": (launch.reproduce.main, launch.figures.search.SearchConfig, None),
    **{command: (main, *options_of(module)) for command, (main, module) in MODULES.items()},
}
LONG_WORK = (
    (launch.train, "start_devices"),
    (launch.trainer.many_runs, "only_writer"),
    (launch.distributed.job.Job, "flags"),
    (launch.hosts, "_free_ports"),
    (rps_jax.theory, "measure"),
    (rps_jax.colocation.validation, "compare"),
    (launch.benchmarks.metrics, "find_source"),  # It reads the data for every number of packets.
    (cifar10, "find"),
    *(
        (module, name)
        for _, module in MODULES.values()
        for name in (
            *("start_devices", "Bed", "only_writer", "_start_twice", "_measure_over_processes"),
            *("simulate", "measure_all"),
        )
        if hasattr(module, name)
    ),
)


def long_work(*arguments: Any, **options: Any) -> NoReturn:
    """Stands for what comes after all checks."""
    del arguments, options
    raise SystemExit(0)


@pytest.mark.parametrize(
    "draws", [30, pytest.param(150, marks=pytest.mark.long)], ids=["few", "many"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_any_flags_run_or_are_refused_in_one_line(
    command: str,
    draws: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main, config, after = COMMANDS[command]
    _, *words = command.split()
    for module, name in LONG_WORK:
        monkeypatch.setattr(module, name, long_work)
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    Path("hosts").write_text("here\nthere\n")
    Path("dangling").symlink_to("absent")
    Path("loop").symlink_to("loop")
    before = set(tmp_path.rglob("*"))
    fields = {name for kind in (config, after) if kind for name in typing.get_type_hints(kind)}
    flags = {f"--{name.replace('_', '-')}" for name in fields}

    rng = random.Random(command)
    failures = []
    for _ in range(draws):
        argv = [*words, *some_flags(rng, config)]
        if after is not None and rng.random() < 0.5:
            argv += ["--", *some_flags(rng, after)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                status = main(argv)
        except SystemExit as stop:
            status = stop.code
        except BaseException as error:
            status = repr(error)
        said = capsys.readouterr().err
        one_line = said.startswith("error: ") and said.count("\n") == 1
        if status not in (0, 2) or (status == 2) != one_line or (status == 0 and said):
            failures.append(f"{argv}: {status}, {said!r}")
        if not flags.issuperset(re.findall(r"^error: (--[\w-]+)", said)):
            failures.append(f"{argv}: not a flag of this command: {said!r}")
        if written := set(tmp_path.rglob("*")) - before:
            failures.append(f"{argv}: {written} written")
            before |= written
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_a_terminal(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, *words = command.split()
    with contextlib.suppress(SystemExit):
        COMMANDS[command][0]([*words, "--help"])
    usage, *lines = capsys.readouterr().out.splitlines()
    assert usage.startswith("usage: ")  # Tyro's, in one line.
    assert max(map(len, lines)) <= 80


def some_flags(rng: random.Random, config: type) -> list[str]:
    """Returns one or two flags of a command, each with a value that fits it or does not."""
    hints = typing.get_type_hints(config)
    argv = []
    for name in rng.sample(sorted(hints), rng.choice((1, 1, 2))):
        argv += [f"--{name.replace('_', '-')}", *some_values(rng, hints[name])]
    return argv


def some_values(rng: random.Random, kind: Any) -> list[str]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(argument for argument in arguments if argument is not type(None))
        return some_values(rng, inner) if rng.random() < 0.9 else ["None"]
    if origin is tuple:
        return [word for _ in range(rng.randint(0, 3)) for word in some_values(rng, arguments[0])]
    if origin is Literal:
        return [rng.choice([*arguments, "nonsense"])]
    return [rng.choice(values)] if (values := HOSTILE[kind]) else []
