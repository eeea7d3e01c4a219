"""What the README shows in Python runs as it stands, block after block, as a new user would."""

import contextlib
import importlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import command_line
from launch.cli.command_line import check_values, split_arguments
from launch.comparison.grid import groups_of, settings_of
from launch.config import parse
from launch.distributed.ports import free_ports

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_readme_s_python_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 3
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_channel_of_one_s_own_runs():
    (script,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/channels.md").read_text(), re.DOTALL
    )
    names = {}
    exec(script, names)
    assert names["delivery"].sent.shape == (8,)


def test_the_script_for_hosts_of_one_s_own_runs(tmp_path):
    """As docs/wire.md has it, but for the addresses: three processes on the loopback."""
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/wire.md").read_text(), re.DOTALL)
    ports = [("127.0.0.1", port) for port in free_ports(3, socket.SOCK_DGRAM)]
    script = re.sub(r"addresses = .*", f"addresses = {ports}", script)
    script += "print(float(params['w'][0]))\n"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["RPS_KEY"] = "00" * 16
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**environment, "WORKER": str(worker)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for worker in range(3)
    ]
    found = [float(worker.communicate(timeout=120)[0]) for worker in workers]
    assert max(found) - min(found) < 1e-3


def test_the_readme_s_pictures_exist():
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture


def commands():
    """The commands that the documents show, on lines of their own and between backticks."""
    found = set()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        text = re.sub(r"\\\n\s*", "", text)
        for name, value in re.findall(r'^    (\w+)="(.*)"$', text, flags=re.MULTILINE):
            text = text.replace(f"${name}", value)
        of_lines = re.findall(r"^    .*python -m (launch[^#\n]*)", text, flags=re.MULTILINE)
        prose = re.sub(r"^    .*", "", text, flags=re.MULTILINE)
        between = re.findall(r"`[^`]*python -m (launch[^`]*)`", prose)
        found.update(" ".join(command.split()) for command in of_lines + between)
    return sorted(found)


class Read(BaseException):
    """Ends a command that has read its own flags."""


@pytest.mark.parametrize("command", commands())
def test_what_the_documents_show_are_commands(command, tmp_path, monkeypatch, capsys):
    module, *argv = command.replace(" [flags]", "").split()
    own, of_training = split_arguments(argv)
    monkeypatch.chdir(tmp_path)
    Path("docs").symlink_to(ROOT / "docs")
    for file in ("drops.npz", "racks.csv"):
        Path(file).touch()
    main = importlib.import_module(module).main
    if module == "launch.train":
        own, of_training = [], argv
    with contextlib.suppress(SystemExit):
        if module == "launch.compare":
            settings_of({}, groups_of(of_training))
        else:
            parse(of_training)
    if not own:
        return

    def check_and_end(config):
        check_values(config)
        raise Read

    monkeypatch.setattr(command_line, "check_values", check_and_end)
    with contextlib.suppress(Read, SystemExit):
        assert main(own) == 0, capsys.readouterr().err
