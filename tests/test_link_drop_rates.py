"""Drop rates of links from a CSV file."""

from pathlib import Path

import numpy as np
import pytest

import rps_jax as rps
from launch.channels import CHANNELS, make_channel
from launch.cli.command_line import UsageError
from launch.config import TrainConfig, parse
from launch.config_file import check_unchanged, deciding


def config_of(path: Path, num_workers: int = 2, *more: str) -> TrainConfig:
    flags = ("--channel", "per-link", "--link-drop-rates", str(path))
    return parse([*flags, "--num-workers", str(num_workers), *more])


@pytest.mark.parametrize(
    ("text", "shape"),
    [("0, 0.1\n0.2,0\n", (2, 2)), ("0,0.1\n0.2,0\n\n0,0.3\n0.4,0", (2, 2, 2)), ("0\n", (1, 1))],
)
def test_a_file_of_one_or_two_phases_is_read(
    tmp_path: Path, text: str, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(text)
    channel = make_channel(config_of(path, shape[-1]))
    assert isinstance(channel, rps.PerLink)
    expected = np.array(text.replace("\n", ",").replace(",,", ",").strip(",").split(","), float)
    np.testing.assert_allclose(channel.drop_rates, expected.reshape(shape), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--link-drop-rates {}: expected a CSV file of drop rates, found an empty one"),
        ("0,a\n1,0", "--link-drop-rates {}: expected lines of as many numbers each, separated"),
        ("0,1\n1", "--link-drop-rates {}: expected lines of as many numbers each, separated"),
        ("0,1\n1,0\n0,0", "--link-drop-rates {}: expected as many lines as columns, 2, or twice"),
        ("0,1.5\n1,0", "--link-drop-rates {}: drop_rates=1.5: expected a probability in [0, 1]"),
        ("0,1,0\n1,0,0\n1,1,1", "--num-workers 2: expected 3, the number of workers in --link-"),
        ("\x80\xff", "--link-drop-rates {}: expected lines of as many numbers each, separated"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rates.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as refused:
        make_channel(config_of(path))
    assert str(refused.value).startswith(message.format(path))
    assert "\n" not in str(refused.value)


def test_a_resumed_run_must_find_the_same_rates(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("0,0.1\n0.1,0")
    before = deciding(config_of(path))
    elsewhere = tmp_path / "copy.csv"
    elsewhere.write_text("0,0.1\n0.1,0")
    check_unchanged(config_of(elsewhere), before, "the run")
    elsewhere.write_text("0,0.2\n0.1,0")
    with pytest.raises(UsageError, match="the link drop rates that the run began with"):
        check_unchanged(config_of(elsewhere), before, "the run")


def test_messages_may_count_whole(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("0,0.1\n0.1,0")
    channel = make_channel(config_of(path, 2, "--packets", "3", "--all-or-nothing"))
    assert isinstance(channel, rps.AllOrNothing)
    channel = make_channel(
        parse(["--channel", "gilbert-elliott", "--packets", "3", "--all-or-nothing"])
    )
    assert channel == rps.AllOrNothing(rps.GilbertElliott(0.1, packets=3))


def test_what_is_dropped_is_said_with_its_packets() -> None:
    for flags in ((), ("--channel", "gilbert-elliott")):
        config = parse([*flags, "--packets", "3", "--all-or-nothing"])
        said = CHANNELS[config.channel].describe(config)
        assert said.endswith(", in 3 packets, all or nothing")
        assert "packets" not in CHANNELS["bernoulli"].describe(parse([]))
