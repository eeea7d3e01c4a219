"""The wheel holds the library alone, and the library works where nothing else of ours is."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

# As in a bare environment: nothing of ours but the wheel, and none of what only `launch`, `models`
# and `data` need can be imported.
USE = """
import importlib.util, sys
for absent in ("flax", "orbax", "tensorflow_datasets", "sklearn", "seqeval", "PIL", "tyro", "tqdm",
               "matplotlib", "numba"):
    sys.modules[absent] = None
import jax, jax.numpy as jnp
import rps_jax as rps
assert rps.__file__.startswith(sys.argv[1]), rps.__file__
for absent in ("models", "data", "launch"):
    assert importlib.util.find_spec(absent) is None, absent
everything = rps.Delivery(*[jnp.ones((4, 4), bool)] * 3)
average = jax.vmap(lambda p, d: rps.average_models(p, d, "workers"), axis_name="workers")
assert average(jnp.arange(4.0), everything).tolist() == [1.5] * 4
"""


def test_the_wheel_holds_the_library_alone(tmp_path):
    # Built from a copy, so that no build folder is left in the checkout.
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rps_jax"}
    assert "rps_jax/py.typed" in names

    # The site-packages of this interpreter give jax, optax and numpy; -I keeps all else away.
    packages = [path for path in sys.path if path.endswith("site-packages")]
    site = str(tmp_path / "site")
    preamble = f"import sys; sys.path[:0] = {[site, *packages]!r}\n"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", preamble + USE, site],
        check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
