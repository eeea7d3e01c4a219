"""Network namespaces as hosts: what the kernel's links do, and that they leave nothing behind."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bed import bed_or_skip

import rps_jax as rps
from launch import bench
from launch.bed import Bed, Link
from launch.benchmarks.colocation import ColocationConfig
from launch.benchmarks.colocation.report import table
from launch.benchmarks.overlap_worker import WAYS
from launch.benchmarks.web import Web
from launch.benchmarks.wire import durations_of

PORT = 4100
SO_RCVBUFFORCE, UDP_SEGMENT, UDP_GRO = 33, 103, 104
FAST = Link(rate=200e6)


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with bed_or_skip(3, FAST) as made:
        yield made


def udp(bed: Bed, host: int, port: int = 0) -> socket.socket:
    made = bed.inside(host, lambda: socket.socket(type=socket.SOCK_DGRAM))
    made.bind((bed.addresses[host], port))
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
    made.settimeout(0.5)
    return made


def received(receiver: socket.socket) -> list[bytes]:
    """What comes until nothing has come for a while."""
    found = []
    while True:
        try:
            found.append(receiver.recv(2048))
        except TimeoutError:
            return found


def test_a_host_has_its_own_name_and_knows_the_others(bed: Bed) -> None:
    ask = "hostname && getent hosts host-2 host-0 && pwd"
    said = subprocess.run(bed.command(2, "sh", "-c", ask), capture_output=True, text=True)
    assert said.stdout.split() == [
        "host-2",
        "10.0.0.3",
        "host-2",
        "10.0.0.1",
        "host-0",
        os.getcwd(),
    ]
    assert socket.gethostname() != "host-2"


@pytest.mark.parametrize("drop_rate", [0.0, 0.25, 1.0])
def test_packets_are_dropped_one_by_one_with_the_given_probability(
    bed: Bed, drop_rate: float
) -> None:
    bed.set_link(Link(rate=200e6, drop_rate=drop_rate))
    count = 2000
    with udp(bed, 0) as sender, udp(bed, 1, PORT) as receiver:
        # Twenty at once, cut by the kernel: a drop is still of one packet.
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
        before = bed.counts()
        for _ in range(count // 20):
            sender.sendto(bytes(2000), (bed.addresses[1], PORT))
        arrived = len(received(receiver))
    counts = bed.counts().since(before)
    assert counts.sent_packets >= count
    assert counts.queue_drops == counts.buffer_drops == 0
    assert arrived == count - counts.random_drops
    standard_deviation = (count * drop_rate * (1 - drop_rate)) ** 0.5
    assert abs(counts.random_drops - count * drop_rate) <= 5 * standard_deviation


def test_packets_that_arrive_together_are_joined_again(bed: Bed) -> None:
    bed.set_link(FAST)
    with udp(bed, 0) as sender, udp(bed, 1, PORT) as receiver:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
        receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        before = bed.counts()
        for _ in range(20):
            sender.sendto(bytes(2000), (bed.addresses[1], PORT))
        found = received(receiver)
    assert sum(map(len, found)) == 40_000
    assert len(found) < 100
    assert bed.counts().since(before).sent_packets >= 400


def test_a_link_carries_no_more_than_its_rate_and_drops_what_finds_no_room(bed: Bed) -> None:
    bed.set_link(Link(rate=20e6, queue_seconds=0.02))
    count = 300
    with udp(bed, 0) as first, udp(bed, 2) as second, udp(bed, 1, PORT) as receiver:
        before = bed.counts()
        began = time.monotonic()
        for _ in range(count):
            for sender in (first, second):
                sender.sendto(bytes(1400), (bed.addresses[1], PORT))
        arrived, seconds = len(received(receiver)), time.monotonic() - began
    counts = bed.counts().since(before)
    # Two cables at full rate into one: half is too much for it.
    assert counts.queue_drops > 0.3 * count
    assert arrived + counts.queue_drops == 2 * count
    assert seconds > 8 * 1442 * arrived / 20e6 - 0.02


def test_a_full_queue_in_the_switch_does_not_slow_those_who_send(bed: Bed) -> None:
    """What waits there is more than their sockets have room for."""
    bed.set_link(Link(rate=50e6, queue_seconds=0.2))
    count = 2000
    with udp(bed, 0) as first, udp(bed, 2) as second, udp(bed, 1, PORT) as receiver:
        before = bed.counts()
        for _ in range(count):
            for sender in (first, second):
                sender.sendto(bytes(1400), (bed.addresses[1], PORT))
        received(receiver)
    assert bed.counts().since(before).queue_drops > 0.2 * count


def test_lower_effort_goes_last(bed: Bed) -> None:
    bed.set_link(Link(rate=20e6, queue_seconds=1.0, lower_effort_last=True))
    with udp(bed, 0) as sender, udp(bed, 1, PORT) as receiver:
        for tos, name, count in ((4, b"late", 100), (0, b"soon", 20)):
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
            for _ in range(count):
                sender.sendto(name + bytes(1400), (bed.addresses[1], PORT))
        order = [datagram[:4] for datagram in received(receiver)]
    assert order.count(b"late") == 100
    assert order.count(b"soon") == 20
    last = len(order) - order[::-1].index(b"soon")
    assert last < 100


def test_a_cable_that_is_down_carries_nothing(bed: Bed) -> None:
    bed.set_link(FAST)
    with udp(bed, 0) as sender, udp(bed, 1, PORT) as receiver:
        # Now the sender knows the other's card: it need not ask, nor wait for the answer.
        sender.sendto(b"before", (bed.addresses[1], PORT))
        assert received(receiver) == [b"before"]
        bed.set_cable(1, "down")
        sender.sendto(b"dropped", (bed.addresses[1], PORT))
        time.sleep(0.05)
        bed.set_cable(1, "up")
        sender.sendto(b"there", (bed.addresses[1], PORT))
        assert received(receiver) == [b"there"]


def test_hosts_have_their_own_congestion_control(bed: Bed) -> None:
    before = bed.used_congestion_control()
    with Bed(2, FAST, congestion_control="reno") as other:
        assert other.used_congestion_control() == "reno"
        assert bed.used_congestion_control() == before


MAKES_A_BED = """
import time
from launch.bed import Bed, Link
with Bed(2, Link(1e9)) as bed:
    made = [*bed._holders, bed.start(1, "sleep", "1000")]
    print(*(process.pid for process in made), flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_bed_ends_with_its_process_however_that_ends(bed: Bed, how: signal.Signals) -> None:
    before = subprocess.run(["ip", "link"], capture_output=True).stdout
    owner = subprocess.Popen(
        [sys.executable, "-c", MAKES_A_BED],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout
    pids = owner.stdout.readline().split()
    assert len(pids) == 4
    assert subprocess.run(["ip", "link"], capture_output=True).stdout == before
    owner.send_signal(how)
    owner.communicate(timeout=30)
    until = time.monotonic() + 30
    while any(Path("/proc", pid).exists() for pid in pids):
        assert time.monotonic() < until, pids
        time.sleep(0.02)


def test_without_root_the_benchmark_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert bench.main(["wire"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: launch.bench wire: expected network namespaces: ")


@pytest.mark.long
def test_the_benchmark_measures_every_setting_in_80_columns(
    bed: Bed, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    arguments = "--rates 200 50 --drop-rates 0 0.05 --num-workers 2 --num-parameters 9000"
    arguments += f" --rounds 1 --frozen-seconds 0.3 --json {path}"
    assert bench.main(["wire", *arguments.split()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    results = json.loads(path.read_text())
    settings = [(row["mbps"], row["drop_rate"]) for row in results["rows"]]
    assert settings == [(200, 0), (200, 0.05), (50, 0), (50, 0.05)]
    model_bytes = 4 * 9000
    for row in results["rows"]:
        # Of two workers each sends half the model, twice, and what packets cost.
        assert 1 < row["udp"]["wire"] * row["mbps"] * 1e6 / 8 / model_bytes < 1.3
        assert row["tcp"]["exchanges"] == row["udp"]["exchanges"] == 4
        assert 0.5 < row["udp"]["arrived"] <= 1
    assert results["frozen"]["mbps"] == 200


@pytest.mark.long
def test_the_benchmark_measures_steps_of_every_kind(
    bed: Bed, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    own = ["overlap", "--rates", "200", "--rounds", "1", "--json", str(path)]
    assert bench.main([*own, "--", "--preset", "linear"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    rows = json.loads(path.read_text())["rows"]
    assert [row["alternative"] for row in rows] == list(WAYS)
    assert all(len(row["milliseconds"]) == 1 for row in rows)


def test_an_exchange_lasts_from_the_last_beginning_to_the_last_end() -> None:
    spans = [[(0.0, 3.0), (3.0, 5.0)], [(1.0, 2.5), (2.5, 7.0)]]
    assert durations_of([{"spans": of_worker} for of_worker in spans]) == [2.0, 4.0]


def test_a_web_service_is_asked_by_a_poisson_process_and_answers_all(bed: Bed) -> None:
    bed.set_link(Link(rate=200e6, drop_rate=0.01))
    webs = [
        bed.inside(host, functools.partial(Web, host, bed.addresses, 20_000)) for host in range(3)
    ]
    plan = {"rate": 200.0, "seconds": 0.5, "warmup": 0.1, "drain": 10.0, "seed": "any"}
    before = bed.counts()
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda web: web.load(**plan), webs))
    for web in webs:
        web.close()
    for answer in answers:
        assert answer["unfinished"] == 0
        # 80 are expected; five standard deviations.
        assert abs(len(answer["seconds"]) - 80) < 45
        assert min(answer["seconds"]) > 8 * 20_000 / 200e6 - 0.002
    assert bed.counts().since(before).sent_bytes > 20_000 * sum(
        len(answer["seconds"]) for answer in answers
    )


def test_a_web_service_leaves_no_connection_open(bed: Bed) -> None:
    bed.set_link(Link(rate=2e6))
    webs = [
        bed.inside(host, functools.partial(Web, host, bed.addresses, 20_000)) for host in range(3)
    ]
    plan = {"rate": 100.0, "seconds": 0.5, "warmup": 0.4, "drain": 0.0, "seed": "any"}
    assert webs[0].load(**plan)["unfinished"] > 0
    for web in webs:
        web.close()
    for host in range(3):
        sockets = subprocess.check_output(bed.command(host, "cat", "/proc/net/tcp"), text=True)
        owners = [line.split()[9] for line in sockets.splitlines()[1:]]
        assert set(owners) <= {"0"}  # The kernel, which waits for the last packets.


def test_the_case_study_has_a_table_of_what_is_measured_before_anything_is_trained() -> None:
    config = ColocationConfig(training_seeds=(0, 1))
    found: dict[str, Any] = dict.fromkeys(
        ("web_load", "mean_ms", "p99_ms", "simulated_mean_ms", "simulated_p99_ms", "exchange_ms"), 1
    )
    found |= {"way": "UDP", "dropped": 0.1, "simulated_dropped": 0.1, "unfinished": 0}
    before, after = (
        table(config, [{**found, "train_loss": losses}]) for losses in (None, [0.1, 0.3])
    )
    assert before.splitlines()[-1].endswith("| - |")
    assert after.splitlines()[-1].endswith("| 0.2000 |")
    assert "95% intervals of ± " in after


@pytest.mark.long
def test_the_case_study_leaves_a_table_a_picture_and_numbers(bed: Bed, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    arguments = f"--web-loads 0.3 --seconds 4 --rounds 1 --num-parameters 50000 --training-seeds 0 \
        --output-dir {folder} -- --preset linear --epochs 1"
    # It trains, on devices of its own: in a process that has none yet.
    command = [sys.executable, "-m", "launch.bench", "colocation", *arguments.split()]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    table = (folder / "table.md").read_text()
    assert table in out
    assert max(map(len, table.splitlines())) <= 80
    assert (folder / "colocation.png").stat().st_size > 1000
    alone, one_queue, web_first, by_tcp = json.loads((folder / "run.json").read_text())["rows"]
    for row in (alone, one_queue, web_first, by_tcp):
        assert row["messages"] > 50
        assert row["unfinished"] == 0
    assert alone["exchange_ms"] is None
    assert 0 <= one_queue["dropped"] < 0.5
    assert web_first["simulated_mean_ms"] > alone["simulated_mean_ms"]
    assert by_tcp["exchanges"] > 0
    assert alone["train_loss"] is None
    for row in (one_queue, web_first, by_tcp):
        assert len(row["train_loss"]) == 1
    assert rps.Trace.load(folder / "trace-0.3-udp-web-first.npz").packets > 1
