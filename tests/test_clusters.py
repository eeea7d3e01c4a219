"""What is ready to use on clusters: the files are sound, and a training starts by them.

The schedulers are stood in for by scripts that set what they set; JAX, and the processes, are real.
"""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import kubernetes_validate
import pytest
import yaml

from launch.cluster import ray as ray_cluster
from launch.config import TrainConfig, parse
from launch.distributed import initialize

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "launch" / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
MANIFEST = list(yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text()))

TINY = ("--preset", "linear", "--num-workers", "4", "--batch-size", "64", "--epochs", "1")
TINY += ("--start-timeout", "300")

# Run two tasks of what follows the options, and fail if one does.
TWO_TASKS = """
tasks=()
for task in 0 1; do
  {variables} "$@" < /dev/null &
  tasks+=("$!")
done
status=0
for task in "${{tasks[@]}}"; do
  wait "$task" || status=$?
done
exit "$status"
"""

SRUN = """
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 SLURM_NTASKS=2
""" + TWO_TASKS.format(variables="SLURM_PROCID=$task SLURM_LOCALID=$task")

# JAX takes the port from the number of the job, which is a multiple of 4096.
MPIRUN = """
while [[ $1 == --* ]]; do shift 2; done
export OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2
export OMPI_MCA_orte_hnp_uri="$((JOB * 4096)).0;tcp://127.0.0.1:1"
""" + TWO_TASKS.format(variables="OMPI_COMM_WORLD_RANK=$task OMPI_COMM_WORLD_LOCAL_RANK=$task")

# Stands in for Python: says how it was called, and ends as it is told.
PYTHON = """
printf '%s\\n' "$*" >> "$CALLS"
exit "${STATUS:-0}"
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns what puts a script before all commands of its name."""
    folder = tmp_path / "commands"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))

    def put(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{script}")
        path.chmod(0o755)
        return path

    return put


def run(*argv: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **os.environ, **variables}
    return subprocess.run(
        [str(word) for word in argv],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def job_of_a_free_port() -> int:
    """Returns a number of which JAX makes a free port: one of the last 4096."""
    for job in range(1, 4096):
        with socket.socket() as opened:
            try:
                opened.bind(("", 65536 - 4096 + job))
            except OSError:
                continue
            return job
    raise AssertionError("no port is free")


def devices_of(folder: Path) -> str:
    return json.loads((folder / "summary.json").read_text())["devices"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_sound(script: Path) -> None:
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    for command in (["bash", "-n"], [checker]):
        done = run(*command, script)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("number", range(len(MANIFEST)), ids=lambda i: MANIFEST[i]["kind"])
def test_the_manifest_is_what_kubernetes_takes(number: int) -> None:
    kubernetes_validate.validate(MANIFEST[number], "1.31", strict=True)


def test_the_parts_of_the_manifest_fit_together() -> None:
    parts = {part["kind"]: part for part in MANIFEST}
    service, job = parts["Service"], parts["Job"]
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}

    assert str(spec["completions"]) == str(spec["parallelism"]) == variables["PROCESSES"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    coordinator = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert f"--coordinator {coordinator}:" in container["command"][-1]
    (claim,) = (volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"])
    assert claim == parts["PersistentVolumeClaim"]["metadata"]["name"]
    for rule in spec["podFailurePolicy"]["rules"]:
        exits = rule.get("onExitCodes", {})
        assert exits.get("containerName", container["name"]) == container["name"]


def test_what_a_pod_runs(commands: Any, tmp_path: Path) -> None:
    (job,) = (part for part in MANIFEST if part["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    shell = container["command"][-1].replace("/runs/", f"{tmp_path}/")
    commands("python", PYTHON)
    assert run("bash", "-c", shell, PROCESSES="4", JOB_COMPLETION_INDEX="3").returncode == 0
    (call,) = (tmp_path / "calls").read_text().splitlines()
    module, *flags = call.removeprefix("-m ").split()
    assert module == "launch.train"
    config = parse(flags)
    assert (config.coordinator, config.num_processes, config.process_id) == ("rps-0.rps:8476", 4, 3)
    assert config.output_dir == tmp_path / "digits"
    assert config.auto_resume


@pytest.mark.long
def test_slurm_starts_a_training_and_goes_on_with_it(commands: Any, tmp_path: Path) -> None:
    commands("srun", SRUN)
    folder = tmp_path / "a run"
    job = str(job_of_a_free_port())
    script = ("bash", CLUSTER / "slurm.sh", folder)
    for flags, said in ((TINY, "epoch 1/1"), ((), "resuming at step 5 of 5")):
        done = run(*script, *flags, PYTHON=sys.executable, SLURM_JOB_ID=job)
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout
        assert devices_of(folder) == "4 x cpu in 2 processes"


@pytest.mark.parametrize(
    ("status", "state", "queued_again"),
    [(143, "RUNNING", True), (143, "COMPLETING", False), (1, "RUNNING", False)],
)
def test_slurm_queues_again_what_has_run_out_of_time(
    status: int, state: str, queued_again: bool, commands: Any, tmp_path: Path
) -> None:
    commands("srun", SRUN)
    commands("squeue", f"echo {state}")
    commands("scontrol", 'echo "scontrol $*"')
    python = commands("stand-in", PYTHON)
    done = run(
        *("bash", CLUSTER / "slurm.sh", tmp_path / "run", *TINY),
        PYTHON=str(python), STATUS=str(status), SLURM_JOB_ID="7",
    )  # fmt: skip
    assert done.returncode == status
    assert done.stdout == ("scontrol requeue 7\n" if queued_again else "")
    for call in (tmp_path / "calls").read_text().splitlines():
        config = parse(call.removeprefix("-m launch.train ").split())
        assert (config.num_workers, config.auto_resume) == (4, True)


@pytest.mark.long
def test_jax_recognises_the_tasks_of_open_mpi_4(commands: Any, tmp_path: Path) -> None:
    commands("mpirun", MPIRUN)
    command = (sys.executable, "-m", "launch.train", *TINY, "--output-dir", str(tmp_path / "run"))
    done = run("mpirun", *command, JOB=str(job_of_a_free_port()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert devices_of(tmp_path / "run") == "4 x cpu in 2 processes"


SLURM_OF_2_HOSTS = {"SLURM_STEP_NODELIST": "a,b", "SLURM_STEP_NUM_NODES": "2"}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "4"}
OPEN_MPI_OF_2_HOSTS = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


@pytest.mark.parametrize(
    ("variables", "tasks", "all_gpus"),
    [
        (SLURM_OF_2_HOSTS | {"SLURM_NTASKS": "2"}, 2, True),
        (SLURM_OF_2_HOSTS | {"SLURM_NTASKS": "4"}, 4, False),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, 4, True),
        # Open MPI within an allocation of SLURM, which has started a daemon on each host.
        (SLURM_OF_2_HOSTS | {"SLURM_NTASKS": "2"} | OPEN_MPI_OF_2_HOSTS, 4, False),
    ],
)
def test_how_many_tasks_there_are_and_whether_one_has_all_gpus_of_its_host(
    variables: dict[str, str], tasks: int, all_gpus: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: asked.update(options))
    monkeypatch.setattr(initialize, "visible_gpus", lambda: ["0", "1", "2"])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert initialize.count_processes(TrainConfig()) == tasks
    initialize.join(TrainConfig())
    gpus = asked["local_device_ids"]
    assert (gpus is not None and list(gpus) == [0, 1, 2]) == all_gpus


def test_open_mpi_tells_each_process_what_it_is(commands: Any, tmp_path: Path) -> None:
    commands("mpirun", MPIRUN)
    python = commands("stand-in", PYTHON)
    hosts = tmp_path / "hosts"
    hosts.write_text("# ours\n\n  me@first slots=1\nsecond\n")
    argv = ("bash", CLUSTER / "openmpi.sh", hosts, tmp_path / "run", *TINY)
    assert run(*argv, PYTHON=str(python), PORT="7000", JOB="1").returncode == 0
    calls = [call.split()[2:] for call in (tmp_path / "calls").read_text().splitlines()]
    configs = [parse(call) for call in calls]
    assert sorted(config.process_id for config in configs) == [0, 1]
    for config in configs:
        assert (config.coordinator, config.num_processes) == ("first:7000", 2)
        assert (config.num_workers, config.auto_resume) == (4, True)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI is not installed")
def test_a_training_under_the_real_open_mpi(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    port = str(65536 - 4096 + job_of_a_free_port())
    argv = ("bash", CLUSTER / "openmpi.sh", hosts, tmp_path / "run", *TINY)
    done = run(*argv, PYTHON=sys.executable, PORT=port, **as_root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert devices_of(tmp_path / "run") == "4 x cpu in 2 processes"


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_training_under_ray(tmp_path: Path) -> None:
    launch = (sys.executable, "-m", "launch.cluster.ray", "--processes", "2")
    done = run(*launch, "--", *TINY, "--output-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert devices_of(tmp_path / "run") == "4 x cpu in 2 processes"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--processes", "3"], "--processes 3: expected a divisor of 16 workers"),
        (["--gpus-per-process", "-1"], "--gpus-per-process -1: expected at least 0"),
        (["--", "--epochs", "0"], "--epochs 0: expected at least 1"),
        (["--max-restarts", "1", "--", "--record", "a"], "--record a is not allowed beside --max"),
        ([], "expected Ray Train"),
    ],
)
def test_what_ray_is_not_asked_for(
    argv: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)  # Where it is installed, as if it were not.
    assert ray_cluster.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")


def test_what_the_files_show_are_flags_of_the_training() -> None:
    for file in (*SCRIPTS, CLUSTER / "kubernetes.yaml"):
        for line in re.findall(r"RUN_FOLDER (--preset .*)", file.read_text()):
            parse(line.split())
