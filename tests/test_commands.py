"""What the smaller commands print, and what all of them refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rps_jax as rps
from launch import bench, colocate, compare, hosts, local, reproduce, theory, train
from launch.benchmarks import exchange, memory, metrics, scale, workers
from rps_jax.transport import packets

ROOT = Path(__file__).parents[1]
TRACE = f"--channel trace --trace {__file__}"  # Any file: it is not read.
PROCESS = "--num-processes 2 --process-id 0"
TRAINING = "training --output-dir results --"
WAYS = ("over UD", "waiting")
SLURM = {"SLURM_STEP_NODELIST": "host", "SLURM_NTASKS": "2"}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://host:1", "OMPI_COMM_WORLD_SIZE": "2"}


def test_theory_prints_predicted_beside_measured(capsys):
    arguments = ["--num-workers", "2", "--drop-rates", "0.1", "--num-exchanges", "50"]
    assert theory.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    workers, drop_rate, contraction, _, _, drift, _, _ = lines[-1].replace("±", " ").split()
    assert (int(workers), float(drop_rate)) == (2, 0.1)
    assert float(contraction) == pytest.approx(0.145 - 0.1125)
    assert float(drift) == pytest.approx(0.1125)


@pytest.mark.parametrize(
    "burst",
    [[], ["--mean-burst", "8"], ["--mean-burst", "8", "--bad-drop-rate", "0.625"]],
)
def test_a_plan_of_a_network_fits_on_a_screen(burst, capsys):
    assert theory.main(["plan", "--num-workers", "16", "--drop-rate", "0.1", *burst]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    (of_rps,) = (line.split() for line in lines if "(RPS)" in line)
    assert float(of_rps[3]) == pytest.approx(rps.theory.contraction(16, 0.1), rel=1e-3)
    over_udp, waiting = (float(line.split()[-1]) for line in lines if line[2:9] in WAYS)
    assert over_udp < waiting


@pytest.mark.parametrize("size", [2, 4])
def test_a_plan_counts_the_bytes_of_small_packets_and_no_rounding(size, capsys):
    flags = ["--num-workers", "16", "--num-parameters", "1600", "--drop-rate", "0.999"]
    assert theory.main(["plan", *flags, "--bytes-per-parameter", str(size)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (of_rps,) = (line.split() for line in lines if "(RPS)" in line)
    assert of_rps[5] == "0"  # Equal models stay equal.
    over_udp, _ = (float(line.split()[-1]) for line in lines if line[2:9] in WAYS)
    a_message = 100 * size + packets.MTU - packets.payload_of(packets.MTU)
    assert over_udp == pytest.approx(2 * 15 * 8 * a_message / 1e9, rel=1e-3)


@pytest.mark.long
def test_bench_measures_steps_that_count_beside_steps_that_do_not(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(metrics, "start_devices", lambda *workers: None)
    path = tmp_path / "results.json"
    arguments = ["--preset", "linear", "--num-workers", "2", "--packets", "2", "--rounds", "3"]
    assert bench.main(["metrics", *arguments, "--json", str(path)]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split()[:2] == ["2", "2"]
    (row,) = json.loads(path.read_text())["rows"]
    assert [len(times) for times in row["milliseconds"].values()] == [3, 3, 3]
    assert row["ratio"] > 0


@pytest.mark.long
def test_bench_measures_many_workers_beside_one_model(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "start_devices", lambda *workers: None)
    path = tmp_path / "results.json"
    arguments = ["--models", "lstm", "--num-workers", "2", "--batch-size", "4"]
    arguments += ["--rounds", "1", "--many-models", "loop", "vmap", "--json", str(path)]
    assert bench.main(["workers", *arguments]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, [header, *lines])) <= 80
    rows = json.loads(path.read_text())["rows"]
    ways = [(1, "auto"), (2, "loop"), (2, "vmap")]
    assert [(row["workers"], row["many_models"]) for row in rows] == ways
    assert all(row["ratio"] > 0 for row in rows)


@pytest.mark.long
def test_bench_measures_exchanges_of_workers_on_one_device(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(scale, "start_devices", lambda *_: None)
    path = tmp_path / "scale.json"
    arguments = ["--num-workers", "2", "--num-parameters", "60", "--rounds", "2"]
    assert bench.main(["scale", *arguments, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [(row["workers"], row["alternative"]) for row in rows] == [
        (2, name) for name in ("average_models", "its drops", "lax.pmean")
    ]
    assert all(len(row["milliseconds"]) == 2 and row["compile_seconds"] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_a_step_takes_at_most_three_copies_of_the_model(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "start_devices", lambda *_: None)
    monkeypatch.setattr(memory, "_ALGORITHMS", ("rps",))
    path = tmp_path / "memory.json"
    size = ["--num-workers", "4", "--workers-per-device", "1", "2", "--layers", "4"]
    assert bench.main(["memory", *size, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    # The activations, too, and what is drawn: little, even beside a small model.
    assert max(row["copies"] for row in rows) < 3.05


@pytest.mark.long
def test_bench_measures_exchanges_between_processes(tmp_path):
    path = tmp_path / "exchange.json"
    arguments = ["--processes", "2", "--num-workers", "2", "--num-parameters", "600"]
    assert bench.main(["exchange", *arguments, "--rounds", "1", "--json", str(path)]) == 0
    assert {row["num_parameters"] for row in json.loads(path.read_text())["rows"]} == {600}


def test_bench_prints_medians_beside_a_plain_all_reduce(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(exchange, "start_devices", lambda *workers: None)
    path = tmp_path / "new" / "results.json"
    arguments = ["--num-workers", "4", "--num-parameters", "600", "--rounds", "1"]
    assert bench.main([*arguments, "--json", str(path)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["parameters", "median", "ms", "ratio"]
    assert all(line.startswith(" " * 7 + "600  ") for line in lines)
    assert any("average_models  " in line for line in lines)
    plain = lines[0]
    assert "lax.pmean" in plain
    assert plain.endswith("  1.00")
    results = json.loads(path.read_text())
    assert results["command"].startswith("python -m launch.bench exchange --num-workers 4 ")
    first, *others = results["rows"]
    assert first["alternative"] == "lax.pmean, one array"
    assert len(others) == len(lines) - 1


@pytest.mark.long
def test_a_start_is_measured_without_compiled_programs_and_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    assert bench.main(["startup", "--processes", "1", "--rounds", "1", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [(row["processes"], row["programs"]) for row in rows] == [(1, "none"), (1, "kept")]
    assert all(seconds > 0 for row in rows for seconds in row["seconds"])
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        (theory, "--num-workers 1", "--num-workers 1: expected at least 2"),
        (theory, "--num-workers", "--num-workers: expected at least one"),
        (theory, "--num-workers 2 2", "--num-workers 2 2: expected each value once"),
        (theory, "--num-workers 1000000", "--num-workers 1000000: expected at most 10000"),
        (theory, "--drop-rates 2", "--drop-rates 2.0: expected probabilities in [0, 1]"),
        (theory, "plan --num-workers 1", "--num-workers 1: expected at least 2"),
        (theory, "plan --drop-rate 1", "--drop-rate 1.0: expected a probability in [0, 0.999]"),
        (theory, "plan --mean-burst 0.5", "--mean-burst 0.5: expected at least 1"),
        (theory, "plan --drop-rate 0.9 --mean-burst 2", "--mean-burst 2.0: expected at least 9"),
        (theory, "plan --bad-drop-rate 0.5", "--bad-drop-rate 0.5 requires --mean-burst"),
        (
            theory,
            "plan --mean-burst 8 --good-drop-rate 0.2",
            "--drop-rate 0.1: expected a number in [0.2, 1], between the rates of good and of bad",
        ),
        (theory, "--seed -1", "--seed -1: expected an integer in [0, 2^32)"),
        (theory, f"--seed {10**20 - 1}", f"--seed {10**20 - 1}: expected an integer in [0, 2^32)"),
        (bench, "--rounds 0", "--rounds 0: expected at least 1"),
        (bench, "--workers-per-device 3", "--workers-per-device 3: expected a divisor of 8"),
        (bench, "--processes 3", "--processes 3: expected a divisor of 8 workers"),
        (bench, "--num-workers 100000", "--num-workers 100000: expected what fits into"),
        (bench, f"--num-parameters {10**15}", f"--num-parameters {10**15}: expected at most"),
        (bench, f"--num-parameters {10**12}", f"--num-parameters {10**12}: expected what fits"),
        (
            bench,
            "--num-workers 4096 --workers-per-device 1 --num-parameters 9",
            "--workers-per-device 1: expected at",
        ),
        (
            bench,
            "nothing",
            "launch.bench nothing: expected one of exchange, wire",
        ),
        (bench, "--json .", "--json .: expected a file"),
        (bench, "workers --num-workers 3", "--num-workers 3: expected divisors of --batch-size"),
        (bench, "startup --processes 0", "--processes 0: expected at least 1"),
        (bench, "startup --processes 1 3", "--processes 3: expected divisors of 16 workers"),
        (bench, "scale --num-workers 0", "--num-workers 0: expected at least 1"),
        (bench, "overlap -- --num-workers 5", "--num-workers 5 is not allowed after --"),
        (bench, "overlap -- --drop-rate 0.5", "--drop-rate 0.5 is not allowed after --"),
        (bench, "overlap -- --local-steps 2", "--local-steps 2 requires --algorithm rps"),
        (bench, "overlap -- --server stale", "--server stale requires --algorithm"),
        (bench, f"{TRAINING} --algorithm=local", "--algorithm is not allowed after --"),
        (bench, f"{TRAINING} --drop-rate 0.5", "--drop-rate 0.5 is not allowed with --network udp"),
        (bench, f"{TRAINING} --local-steps 2", "--local-steps 2 requires --algorithm rps"),
        (bench, "wire --rates 0", "--rates 0.0: expected rates in [1, 10000] Mbps"),
        (bench, "wire --drop-rates 0.5", "--drop-rates 0.5: expected probabilities in [0, 0.3]"),
        (bench, "wire --num-workers 1", "--num-workers 1: expected at least 2"),
        (
            bench,
            f"wire --num-parameters {10**12}",
            f"--num-parameters {10**12}: expected what fits",
        ),
        (compare, "--drop-rates 1.5", "--drop-rates 1.5: expected probabilities in [0, 1]"),
        (compare, "--seeds -1", "--seeds -1: expected integers in [0, 2^32)"),
        (compare, "-- --seed 3", "--seed 3 is not allowed after --"),
        (compare, "--drop-rates 0 -- --drop-rate 1", "--drop-rates 0 is not allowed beside"),
        (compare, f"--drop-rates 0.5 -- {TRACE}", "--drop-rate 0.5 requires --channel bernoulli"),
        (compare, "-- rps", "rps: expected the flags of launch.train after --"),
        (compare, "-- --packets 4 --packets 8", "--packets: expected once, with all of its"),
        (compare, "-- --packets 4 4", "--packets 4 4: expected each value once"),
        (compare, "-- --preset digits linear", "--preset digits linear: expected one value for"),
        (compare, "-- -- --num-workers 4", "--num-workers 4: expected one value for all runs"),
        (compare, "-- --server received mean", "--server mean: expected one of"),
        (compare, "-- --mean-burst 2 4", "--mean-burst 2.0 requires --channel gilbert-elliott"),
        (compare, "-- --on-miss own zero", "--algorithm rps: on_miss='zero': expected one of own"),
        (compare, "-- --epochs 0", "--epochs 0: expected at least 1"),
        (train, "--label-skew 1e308", "--label-skew 1e+308: expected a positive number, in"),
        (train, "--start-timeout 1e308", "--start-timeout 1e+308: expected seconds"),
        (train, f"{PROCESS} --coordinator=", "--coordinator: expected HOST:PORT"),
        (train, f"{PROCESS} --coordinator a..b:5", "--coordinator a..b:5: expected HOST:PORT"),
        (train, f"{PROCESS} --coordinator {'a' * 70}:5", f"--coordinator {'a' * 70}:5: expected"),
        (train, "--packets 5000", "--packets 5000: expected at most 4687 packets"),
        (local, "-- --packets 5000", "--packets 5000: expected at most 4687 packets"),
        (local, "-- --workers-per-device 16", "--workers-per-device 16: expected a divisor of the"),
        (hosts, "--hostfile many --ssh ls", "--hostfile many: expected NAME or NAME slots=N"),
        (hosts, "--ssh /no/such", "--ssh /no/such: expected a command that can be run here"),
        (hosts, ["--ssh", "ssh 'x"], "--ssh ssh 'x: expected a command that can be run here"),
        (colocate, "simulate --threshold-bytes 1e30", "--threshold-bytes 1e+30: expected at most"),
        (colocate, f"simulate --model-bytes {2**40}", f"--model-bytes {2**40}: expected what fits"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    command, arguments, expected, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    Path("many").write_text("localhost slots=99999999999999999999")
    assert command.main(arguments.split() if isinstance(arguments, str) else arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")
    assert os.listdir() == ["many"]


@pytest.mark.parametrize("folder", ["dangling", "loop", "/proc/x", "file", "file/x", "a" * 300])
@pytest.mark.parametrize(
    "command",
    [
        *(train, compare, local, (reproduce, "fig5c", "--data-path", "x")),
        *((colocate, name) for name in ("fig6", "fig7", "tradeoff", "plan")),
    ],
)
def test_a_folder_that_cannot_be_written_is_found_before_anything_runs(
    folder, command, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    Path("dangling").symlink_to("absent")
    Path("loop").symlink_to("loop")
    Path("file").touch()
    command, *words = command if isinstance(command, tuple) else (command,)
    after = ["--"] * (command is local)
    assert command.main([*words, *after, "--output-dir", folder]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --output-dir {folder}: expected a folder")
    assert sorted(os.listdir()) == ["dangling", "file", "loop"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"JAX_PLATFORMS": "nonsense"}, "JAX_PLATFORMS=nonsense: expected some of cpu"),
        (
            {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""},
            "JAX_PLATFORMS=cuda: expected a GPU that JAX can use",
        ),
        ({**SLURM, "SLURM_NTASKS": "x"}, "SLURM_NTASKS=x: expected an integer"),
        ({**SLURM, "SLURM_PROCID": "-1"}, "SLURM_PROCID=-1: expected an integer"),
        ({**SLURM, "SLURM_NTASKS": "3"}, "--num-workers 16: expected a multiple of the 3"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": ""}, "OMPI_COMM_WORLD_SIZE=: expected an integer"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_RANK": "a"}, "OMPI_COMM_WORLD_LOCAL_RANK=a: expected"),
    ],
)
def test_an_environment_that_nothing_can_start_in_is_refused(
    variables, expected, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for command in (train, local) if "JAX_PLATFORMS" in variables else (train,):
        assert command.main([]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {expected}")
        assert not os.listdir()


def test_the_users_backend_of_matplotlib_is_of_no_consequence():
    code = "import launch.train, launch.reports.curves"
    environment = {**os.environ, "MPLBACKEND": "nonsense"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


def test_letters_that_the_terminal_cannot_show_are_replaced():
    code = "from launch.cli.commands import exit_status; exit_status(lambda: print('1 ± 2'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert said.stdout == b"1 ? 2\n"
