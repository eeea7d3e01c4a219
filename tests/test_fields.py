"""Flags that follow from the registries of the library."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import pytest

import rps_jax as rps
from launch.channels import CHANNELS
from launch.channels.bernoulli import Flags
from launch.channels.of_library import of_library
from launch.cli.command_line import UsageError, read_command
from launch.cli.fields import check_belongs, fields_of, flags_of
from launch.config import TrainConfig
from launch.rules import LOSSY, make_rule


@dataclasses.dataclass(frozen=True)
class Bursty:
    drop_rate: jax.Array | float
    burst: jax.Array | float | None = dataclasses.field(default=None, metadata={"help": "Length."})
    kind: Literal["a", "b"] = dataclasses.field(default="a", metadata={"help": "Which."})
    hidden: Any = None

    def __post_init__(self) -> None:
        if self.burst is not None and self.burst < 1:
            raise ValueError(f"burst={self.burst}: expected at least 1")


@pytest.fixture
def bursty() -> Any:
    return of_library("bursty", Bursty, Flags)


def test_the_flags_of_a_channel_are_its_fields_with_a_help_text(bursty: Any) -> None:
    assert {name: field.default for name, field in fields_of(bursty.flags).items()} == {
        "drop_rate": 0.1,
        "burst": None,
        "kind": "a",
    }
    argv = ["--burst", "3", "--kind", "b"]
    config = read_command(bursty.flags, "x", argv, bursty.flags())
    assert bursty.make(config, 4) == Bursty(0.1, 3.0, "b")
    assert bursty.describe(config) == "bursty channel, drop rate 0.1, burst 3.0, kind b"
    with pytest.raises(UsageError, match=r"--drop-rate 2\.0: expected a probability"):
        read_command(bursty.flags, "x", ["--drop-rate", "2"], bursty.flags())


def test_what_a_channel_refuses_is_refused_by_name(bursty: Any) -> None:
    with pytest.raises(UsageError, match="--channel bursty: burst=0: expected at least 1"):
        bursty.check(bursty.flags(burst=0))


def test_a_flag_of_another_entry_is_refused(bursty: Any) -> None:
    owners = {"bernoulli": Flags, "bursty": bursty.flags}

    @dataclasses.dataclass(frozen=True)
    class Config(bursty.flags, Flags):
        channel: str = "bernoulli"

    check_belongs(Config(), "channel", owners)
    check_belongs(Config(channel="bursty", burst=2.0), "channel", owners)
    with pytest.raises(UsageError, match="--kind b requires --channel bursty"):
        check_belongs(Config(kind="b"), "channel", owners)
    with pytest.raises(UsageError, match="--packets 2 requires --channel bernoulli"):
        check_belongs(Config(channel="bursty", packets=2), "channel", owners)


def test_an_option_without_a_default_is_no_flag() -> None:
    @dataclasses.dataclass(frozen=True)
    class Rule:
        lossy: ClassVar[bool] = True
        rate: float = dataclasses.field(metadata={"help": "Needed."})

    with pytest.raises(TypeError, match=r"Rule\.rate is a flag: expected a default"):
        flags_of(Rule)


def test_every_rule_and_channel_of_the_library_can_be_chosen() -> None:
    assert CHANNELS.keys() == rps.CHANNELS.keys()
    for algorithm, rule in rps.RULES.items():
        assert type(make_rule(dataclasses.replace(TrainConfig(), algorithm=algorithm))) is rule
        assert (algorithm in LOSSY) == rule.lossy
