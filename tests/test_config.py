"""What a run may be configured to: values, contradictions, presets, files."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

import rps_jax as rps
from launch.channels import make_channel
from launch.cli.command_line import UsageError
from launch.cli.fields import Mark, fields_of, marked
from launch.config import PRESETS, TrainConfig, default_output_dir, parse, stored_config
from launch.config_file import from_json, to_json
from launch.tasks import TASKS
from launch.trainer.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]
TRACE = ("--channel", "trace", "--trace", str(ROOT / "README.md"))  # Any file: it is not read yet.

DEADLINE, SLOW = ("--channel", "deadline"), ("--slow-workers", "2", "--slowness", "3")


def refusal(*argv: str) -> str:
    """Returns the message that a command line is refused with."""
    with pytest.raises(UsageError) as refused:
        parse(argv)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("num-workers", "0", "at least 1"),
        ("num-workers", "-3", "at least 1"),
        ("num-workers", "2.5", "an integer"),
        ("num-workers", "many", "an integer"),
        ("drop-rate", "1.5", "in [0, 1]"),
        ("drop-rate", "-0.1", "in [0, 1]"),
        ("drop-rate", "nan", "in [0, 1]"),
        ("drop-rate", "10%", "a number"),
        ("all-gather-drop-rate", "2.0", "in [0, 1]"),
        ("all-gather-drop-rate", "x", "a number"),
        ("packets", "0", "at least 1"),
        ("packets", "x", "an integer"),
        ("epochs", "0", "at least 1"),
        ("batch-size", "0", "at least 1"),
        ("learning-rate", "0.0", "a positive number"),
        ("learning-rate", "-1.0", "a positive number"),
        ("learning-rate", "inf", "a positive number"),
        ("momentum", "1.0", "in [0, 1)"),
        ("momentum", "nan", "in [0, 1)"),
        ("weight-decay", "-1.0", "at least 0"),
        ("clip-norm", "0.0", "a positive number"),
        ("label-skew", "0.0", "a positive number"),
        ("label-skew", "nan", "a positive number"),
        ("seed", "-1", "[0, 2^32)"),
        ("seed", "4294967296", "[0, 2^32)"),
        ("checkpoint-every", "0", "at least 1"),
        ("log-every", "0", "at least 1"),
        ("workers-per-device", "0", "at least 1"),
        ("workers-per-device", "3", "a divisor of 16 workers"),
        ("preset", "mnist", "digits"),
        ("algorithm", "fedavg", "rps"),
        ("optimizer", "lamb", "sgd"),
        ("schedule", "linear", "cosine"),
        ("dtype", "float16", "float32"),
        ("on-miss", "skip", "zero"),
        ("assignment", "none", "fixed"),
        ("model-state", "drop", "exchange"),
        ("data-path", "somewhere", "nothing: the digits come with scikit-learn"),
    ],
)
@pytest.mark.parametrize("form", ["two words", "one word"])
def test_an_impossible_value_is_refused_in_one_line(
    flag: str, value: str, expected: str, form: str
) -> None:
    argv = [f"--{flag}", value] if form == "two words" else [f"--{flag}={value}"]
    message = refusal(*argv)
    assert message.startswith(f"--{flag} {value}: expected ")
    assert expected in message


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--bogus", "1"), "--bogus"),
        (("--num-worker", "3"), "--num-worker"),
        (("--resum",), "--resum"),
        (("--no-resume",), "--no-resume"),
        (("--resume=True", "--output-dir", "x"), "True"),
        (("extra",), "extra"),
        (("--epochs",), "--epochs"),
        (("--epochs", "--resume"), "--epochs"),
        (("--output-dir", "--resume"), "--output-dir"),
        (("--preset",), "--preset"),
        (("--preset", "--resume"), "--preset"),
        (("--drop-rate", "0.1", "0.2"), "0.2"),
    ],
)
def test_what_is_no_flag_or_has_no_value_is_refused(argv: tuple[str, ...], named: str) -> None:
    message = refusal(*argv)
    assert named in message
    assert "expected" in message


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--preset", "atis-lstm"), "--data-path: expected the folder of ATIS"),
        (("--download",), "--download requires --preset cifar10-resnet20 or cifar10-resnet110"),
        (
            ("--preset", "cifar10-resnet20", "--download", "--data-path", "x"),
            "--download is not allowed beside --data-path",
        ),
        (("--resume",), "--resume requires --output-dir"),
        (("--channel", "trace"), "--channel trace requires --trace"),
        (("--trace", "absent"), "--trace absent requires --channel trace"),
        (("--channel", "trace", "--trace", "absent"), "--trace absent: expected a file that can"),
        ((*TRACE, "--drop-rate", "0.1"), "--drop-rate 0.1 requires --channel bernoulli"),
        ((*TRACE, "--packets", "2"), "--packets 2 requires --channel bernoulli"),
        ((*TRACE, "--algorithm", "local"), "--channel trace requires --algorithm rps or"),
        (("--channel", "reliable", "--drop-rate", "0.1"), "--drop-rate 0.1 requires --channel"),
        (("--channel", "per-link"), "--channel per-link requires --link-drop-rates"),
        (
            ("--channel", "per-link", "--link-drop-rates", "absent"),
            "--link-drop-rates absent: expected a file that can",
        ),
        (("--mean-burst", "4"), "--mean-burst 4.0 requires --channel gilbert-elliott"),
        # Also where the value is the default.
        (("--mean-burst", "8"), "--mean-burst 8.0 requires --channel gilbert-elliott"),
        (("--bad-drop-rate=1",), "--bad-drop-rate 1.0 requires --channel gilbert-elliott"),
        (("--fragments", "1"), "--fragments 1 requires --algorithm diloco"),
        (("--outer-learning-rate", "0.7"), "--outer-learning-rate 0.7 requires --algorithm"),
        (("--optimizer", "adam", "--momentum", "0.9"), "--momentum 0.9 requires --optimizer sgd"),
        (
            ("--channel", "gilbert-elliott", "--drop-rate", "0.95"),
            "--channel gilbert-elliott: mean_burst=8.0: expected at least 19",
        ),
        (("--channel", "outage", "--packets", "2"), "--packets 2 requires --channel bernoulli or"),
        (("--channel", "outage", "--mean-outage", "0"), "--channel outage: mean_outage=0.0: exp"),
        (("--all-or-nothing",), "--all-or-nothing requires --packets"),
        ((*DEADLINE, "--slow-workers", "2"), "--slow-workers 2 requires --slowness"),
        ((*DEADLINE, "--slowness", "2"), "--slowness 2.0 requires --slow-workers"),
        ((*DEADLINE, *SLOW, "--num-workers", "1"), "--slow-workers 2: expected at most the 1 w"),
        (SLOW, "--slow-workers 2 requires --channel deadline"),
        (("--algorithm", "local", "--packets", "2"), "--packets 2 requires --algorithm rps or"),
        (("--on-miss", "zero"), "--algorithm rps: on_miss='zero': expected one of own, stale"),
        (("--server", "unbiased"), "--algorithm rps: server_drop_rate=None: expected a number"),
        (
            ("--preset", "linear", "--augment"),
            "--augment requires --preset digits or cifar10-resnet20",
        ),
        (("--outer-momentum", "0.5"), "--outer-momentum 0.5 requires --algorithm diloco"),
        (
            ("--algorithm", "all-reduce", "--local-steps", "4"),
            "--local-steps 4 requires --algorithm rps or diloco",
        ),
        (("--drop-rate", "None"), "--drop-rate None: expected a probability"),
        (("--trace-sha256", "0"), "--trace-sha256"),
        (
            ("--num-workers", "8", "--workers-per-device", "3"),
            "--workers-per-device 3: expected a divisor of 8",
        ),
    ],
)
def test_contradictions_are_refused(argv: tuple[str, ...], expected: str) -> None:
    assert refusal(*argv).startswith(expected)


def test_slow_workers_are_those_of_the_lowest_numbers() -> None:
    config = parse([*DEADLINE, *SLOW, "--num-workers", "4", "--packets", "2", "--all-or-nothing"])
    channel = make_channel(config)
    assert isinstance(channel, rps.AllOrNothing)
    assert channel.channel.slowness.tolist() == [3, 3, 1, 1]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_the_defaults_wherever_it_stands(preset: str) -> None:
    path = () if TASKS[preset].takes_path == "never" else ("--data-path", "somewhere")
    expected = dataclasses.replace(
        PRESETS[preset], epochs=7, data_path=Path("somewhere") if path else None
    )
    assert parse(["--preset", preset, *path, "--epochs", "7"]) == expected
    assert parse(["--epochs=7", *path, f"--preset={preset}"]) == expected
    assert parse(["--preset", "digits", "--epochs", "7", *path, "--preset", preset]) == expected


def test_flags_may_be_written_with_underscores_and_optional_ones_unset() -> None:
    config = parse(["--drop_rate=0.5", "--num_workers", "4", "--packets", "3"])
    assert (config.drop_rate, config.num_workers, config.packets) == (0.5, 4, 3)
    atis = ["--preset", "atis-lstm", "--data-path", "x"]
    assert parse(atis).clip_norm == 1.0
    assert parse([*atis, "--clip-norm", "None"]).clip_norm is None


def test_the_stored_configuration_reads_back() -> None:
    paths = {"data_path": Path("a/b"), "output_dir": Path("c"), "trace": Path("d.npz")}
    config = dataclasses.replace(PRESETS["atis-lstm"], packets=4, **paths)
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Returns the folder of a run that differs from the defaults."""
    config = dataclasses.replace(
        PRESETS["cifar10-resnet20"], num_workers=4, drop_rate=0.3, data_path=Path("old")
    )
    RunDirectory(tmp_path / "run").create(config)
    return tmp_path / "run"


@pytest.mark.parametrize("resume", [["--resume"], ["--resume", "--preset", "cifar10-resnet20"]])
@pytest.mark.parametrize("form", ["--output-dir {}", "--output-dir={}", "--output_dir={}"])
def test_resume_goes_on_with_the_stored_run(stored: Path, resume: list[str], form: str) -> None:
    config = parse([*resume, *form.format(stored).split()])
    assert config == dataclasses.replace(
        PRESETS["cifar10-resnet20"],
        num_workers=4,
        drop_rate=0.3,
        data_path=Path("old"),
        output_dir=stored,
        resume=True,
    )


def test_resume_may_change_only_what_does_not_decide_the_result(stored: Path) -> None:
    argv = ["--resume", "--output-dir", str(stored)]
    same = ["--num-workers", "4", "--drop-rate", "0.3"]
    new = ["--data-path", "new", "--log-every", "7", "--checkpoint-every", "2"]
    config = parse([*argv, *same, *new, "--workers-per-device", "2"])
    assert (config.data_path, config.log_every, config.checkpoint_every) == (Path("new"), 7, 2)
    for flag, value in (
        ("--num-workers", "8"),
        ("--drop-rate", "0.2"),
        ("--epochs", "200"),
        ("--seed", "1"),
        ("--algorithm", "local"),
        ("--preset", "digits"),
        ("--all-gather-drop-rate", "0.3"),
    ):
        message = refusal(*argv, flag, value)
        assert message.startswith(f"{flag} {value}: expected ")
        assert str(stored) in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ""),
        ("{", ""),
        ("{}x", ""),
        ("\xff", ""),
        ("[" * 100_000, ""),
        ("[1]", "expected a JSON object"),
        ('{"bogus": 1}', '"bogus": expected the names of flags'),
        ('{"resume": 1}', "--resume 1: expected true or false"),
        ('{"epochs": "x"}', '--epochs "x": expected an integer'),
        ('{"epochs": 0}', "--epochs 0: expected at least 1"),
        ('{"epochs": 3.0}', "--epochs 3.0: expected an integer"),
        ('{"epochs": true}', "--epochs true: expected an integer"),
        ('{"epochs": null}', "--epochs null: expected an integer"),
        ('{"epochs": [[1]]}', "--epochs [[1]]: expected an integer"),
        ('{"drop_rate": "0.1"}', '--drop-rate "0.1": expected a number or null'),
        ('{"drop_rate": NaN}', "--drop-rate nan: expected a probability"),
        ('{"learning_rate": 1%s}' % ("0" * 400), "--learning-rate 1"),
        ('{"learning_rate": false}', "--learning-rate false: expected a number"),
        ('{"algorithm": "zzz"}', '--algorithm "zzz": expected rps, '),
        ('{"preset": "mnist"}', '--preset "mnist": expected digits, '),
        ('{"preset": ["digits"]}', '--preset ["digits"]: expected digits, '),
        ('{"channel": "bursty"}', '--channel "bursty": expected bernoulli, '),
        ('{"trace": "x"}', "--trace x requires --channel trace"),
        ('{"data_path": 5}', "--data-path 5: expected a path or null"),
        ('{"data_path": "\\u0000"}', '--data-path "\\u0000": expected a path or null'),
        ('{"download": 1}', "--download 1: expected true or false"),
    ],
)
def test_resume_checks_the_stored_values_as_the_command_line_does(
    tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    message = refusal("--resume", "--output-dir", str(tmp_path))
    assert message.startswith(f"--output-dir {tmp_path}: config.json: {expected}")
    assert len(message) < len(str(tmp_path)) + 200


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TrainConfig)])
def test_any_stored_value_is_accepted_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    values = [None, True, 0, -1, 1, 2**63, 10**400, 3.0, 1e308, float("nan"), float("inf")]
    values += ["", "x", "digits", "\0", "a\nb", "\ud800", "x" * 5000, [], [1], {}, {"a": None}]
    for value in values:
        (tmp_path / "config.json").write_text(json.dumps({name: value}))
        report = ""
        try:
            found = getattr(stored_config(tmp_path), name)
        except UsageError as error:
            report = error.report()
        if report:
            assert len(report.splitlines()) == 1
        elif isinstance(found, Path):
            assert found == Path(value)
            os.fsencode(found)
        else:
            assert found == value


def test_resume_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    message = refusal("--resume", "--output-dir", str(tmp_path))
    assert message == f"--output-dir {tmp_path}: expected the folder of a run, with its config.json"


def test_the_configuration_of_a_run_of_the_version_before_is_read(tmp_path: Path) -> None:
    before = {
        **{"preset": "atis-lstm", "algorithm": "rps", "num_workers": 16, "channel": "bernoulli"},
        **{"drop_rate": 0.2, "all_gather_drop_rate": None, "packets": None, "trace": None},
        **{"trace_sha256": None, "on_miss": "own", "assignment": "random"},
        **{"model_state": "exchange", "epochs": 20, "batch_size": 4, "optimizer": "sgd"},
        **{"learning_rate": 0.5, "schedule": "cosine", "momentum": 0.9, "weight_decay": 0.0},
        **{"clip_norm": 1.0, "dtype": "float32", "seed": 0, "data_path": "atis"},
        **{"download": False, "label_skew": None, "output_dir": None, "checkpoint_every": 5},
        **{"log_every": 50, "workers_per_device": None},
    }
    (tmp_path / "config.json").write_text(json.dumps(before))
    assert parse(["--resume", "--output-dir", str(tmp_path)]) == dataclasses.replace(
        PRESETS["atis-lstm"],
        drop_rate=0.2,
        learning_rate=0.5,
        momentum=0.9,
        data_path=Path("atis"),
        output_dir=tmp_path,
        resume=True,
    )
    of_images = {**before, "preset": "cifar10-resnet20"}
    (tmp_path / "config.json").write_text(json.dumps(of_images))
    assert parse(["--resume", "--output-dir", str(tmp_path)]).augment


def test_what_decides_the_result_is_stored_and_may_not_change(stored: Path) -> None:
    free = marked(TrainConfig, Mark.MAY_CHANGE, Mark.NOT_STORED, Mark.OF_PROCESS)
    assert {"seed", "preset", "drop_rate", "trace_sha256", "on_miss"}.isdisjoint(free)
    assert {"output_dir", "trace", "resume", "coordinator"} <= set(free)
    values = json.loads((stored / "config.json").read_text())
    assert values.keys().isdisjoint(marked(TrainConfig, Mark.NOT_STORED, Mark.OF_PROCESS))
    assert values.keys() >= {field.name for field in dataclasses.fields(TrainConfig)} - set(free)


def test_a_default_folder_is_always_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = default_output_dir(TrainConfig(), "now")
    assert first == Path("runs/digits-rps-now")
    first.mkdir(parents=True)
    assert default_output_dir(TrainConfig(), "now") == Path("runs/digits-rps-now-2")


@pytest.mark.parametrize("preset", ["digits", "atis-lstm"])
def test_help_fits_a_terminal_and_shows_the_defaults_of_the_preset(
    preset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        parse(["--preset", preset, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for field in dataclasses.fields(TrainConfig):
        # What is computed, or decided by another command, is no flag.
        if tyro.conf.Suppress not in fields_of(TrainConfig)[field.name].annotations:
            assert f"--{field.name.replace('_', '-')}" in text
    assert f"(default: {PRESETS[preset].epochs})" in text


def test_the_command_refuses_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", "--drop-rate", "1.5"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: --drop-rate 1.5: expected a probability in [0, 1]\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
