"""Which flags of a run go together, and which do not."""

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from launch.channels import CHANNELS, ChannelFlags
from launch.cli.command_line import check_values, expect, not_allowed, refuse, requires
from launch.cli.fields import Mark, check_belongs, fields_of, marked
from launch.distributed.rendezvous import address_of_flag
from launch.rules import LOSSY, RULE_FLAGS, make_rule
from launch.tasks import TASKS
from rps_jax.servers import RECEIVED

if TYPE_CHECKING:
    from launch.config import TrainConfig


def check(config: "TrainConfig", given: Collection[str] = ()) -> None:
    """Raises `UsageError` for a value that no run can have.

    Args:
        config: The run.
        given: Fields of flags that were given, which are refused where they say nothing.
    """
    check_values(config)
    channels = {name: kind.flags for name, kind in CHANNELS.items()}
    check_belongs(config, "channel", channels, given)
    CHANNELS[config.channel].check(config)
    _check_algorithm(config, given)
    if config.optimizer != "sgd" and "momentum" in given:
        requires("momentum", config.momentum, "--optimizer sgd")
    if config.network == "udp":
        _check_over_udp(config)
    if config.record is not None:
        _check_record(config)
    _check_data_flags(config)
    per_device = config.workers_per_device
    if per_device is not None and config.num_workers % per_device:
        refuse("workers_per_device", per_device, f"a divisor of {config.num_workers} workers")
    if config.resume and config.output_dir is None:
        requires("resume", True, "--output-dir, the folder of the run to go on with")
    if config.auto_resume and config.output_dir is None:
        requires("auto_resume", True, "--output-dir, the folder of the run")
    if config.allow_resize and not (config.resume or config.auto_resume):
        requires("allow_resize", True, "--resume")
    _check_process(config)


def _check_algorithm(config: "TrainConfig", given: Collection[str]) -> None:
    check_belongs(config, "algorithm", RULE_FLAGS, given)
    make_rule(config)
    if config.algorithm in LOSSY:
        return
    # The drop rate alone has a default, and loops over algorithms give it to all.
    without = [k for k, v in fields_of(ChannelFlags).items() if v.default is None]
    for name in _not_as_preset(config, "channel", *without):
        requires(name, getattr(config, name), f"--algorithm {' or '.join(LOSSY)}")


def _not_as_preset(config: "TrainConfig", *names: str) -> list[str]:
    """Returns which of some flags have other values than the preset gives them."""
    defaults = {name: field.default for name, field in fields_of(type(config)).items()}
    defaults |= TASKS[config.preset].defaults
    return [name for name in names if getattr(config, name) != defaults[name]]


def _check_record(config: "TrainConfig") -> None:
    assert config.record is not None
    if config.algorithm not in LOSSY:
        requires("record", config.record, f"--algorithm {' or '.join(LOSSY)}")
    if config.resume and config.network != "udp":  # Whose workers report what they know.
        not_allowed("record", config.record, "beside --resume: its trace begins at the first step")
    replayed = config.trace
    if replayed is not None and os.path.realpath(replayed) == os.path.realpath(config.record):
        not_allowed("record", config.record, f"beside --trace {replayed}, which is the same file")


def _check_over_udp(config: "TrainConfig") -> None:
    rule = make_rule(config)
    if not rule.lossy and rule.sends(0.0) != ():
        requires("algorithm", config.algorithm, "a reliable network, not --network udp")
    beside = "with --network udp, which drops by itself"
    for name in _not_as_preset(config, "channel", *fields_of(ChannelFlags)):
        not_allowed(name, getattr(config, name), beside)
    for name in marked(type(config), Mark.NOT_OVER_UDP):
        if getattr(config, name):
            not_allowed(name, getattr(config, name), "with --network udp")
    fragments = getattr(rule, "fragments", 1)
    if fragments > 1:
        not_allowed("fragments", fragments, "with --network udp, which sends whole models")
    server = getattr(rule, "server", RECEIVED.name)
    if server != RECEIVED.name:
        not_allowed("server", server, "with --network udp, whose servers average what they receive")


def _check_data_flags(config: "TrainConfig") -> None:
    task = TASKS[config.preset]
    if config.data_path is not None and task.takes_path == "never":
        refuse("data_path", config.data_path, f"nothing: {task.data}")
    if config.data_path is None and task.takes_path == "always":
        refuse("data_path", None, task.data)
    if config.download and not task.can_download:
        able = [name for name, task in TASKS.items() if task.can_download]
        requires("download", True, f"--preset {' or '.join(able)}")
    if config.augment and not task.can_augment:
        able = [name for name, task in TASKS.items() if task.can_augment]
        requires("augment", True, f"--preset {' or '.join(able)}")
    if config.download and config.data_path is not None:
        not_allowed("download", True, "beside --data-path")


def _check_process(config: "TrainConfig") -> None:
    names = marked(type(config), Mark.OF_PROCESS)
    given = [name for name in names if getattr(config, name) is not None]
    for name in names:
        if given and name not in given:
            flags = ", ".join("--" + flag.replace("_", "-") for flag in names)
            refuse(name, None, f"all of {flags}, or none")
    if not given:
        return
    assert config.coordinator is not None
    assert config.num_processes is not None
    assert config.process_id is not None
    address_of_flag("coordinator", config.coordinator)
    processes, workers = config.num_processes, config.num_workers
    divides = processes >= 1 and workers % processes == 0
    expect("num_processes", processes, divides, f"a divisor of {workers} workers")
    mine = 0 <= config.process_id < processes
    expect("process_id", config.process_id, mine, f"0 to {processes - 1}")
    per_device = config.workers_per_device
    if per_device is not None and workers // processes % per_device:
        each = workers // processes
        refuse("workers_per_device", per_device, f"a divisor of the {each} workers a process")
