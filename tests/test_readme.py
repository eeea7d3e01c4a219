"""What the README shows in Python runs as it stands, block after block, as a new user would."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def free_ports(count):
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in bound]


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
    ports = [("127.0.0.1", port) for port in free_ports(3)]
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


def test_the_readme_s_pictures_and_commands_exist():
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture
    for module in set(re.findall(r"python -m (launch\.\w+)", README)):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
