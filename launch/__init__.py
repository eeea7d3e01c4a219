"""What people run: `python -m launch.train` and its companions."""

import os
import sys
from importlib.util import find_spec

# Pictures are drawn into files; matplotlib is not to look for a window, nor to fail for one.
os.environ["MPLBACKEND"] = "agg"

# The library installs without these; said here, before any command imports them.
_REQUIRED = (
    "array_record",
    "flax",
    "matplotlib",
    "numba",
    "orbax",
    "PIL",
    "scipy",
    "seqeval",
    "sklearn",
    "tensorflow_datasets",
    "tqdm",
    "tyro",
)
_missing = [name for name in _REQUIRED if find_spec(name) is None]
if _missing:
    print(
        f'error: {", ".join(_missing)} not installed: pip install -e ".[launch]"',
        file=sys.stderr,
    )
    sys.exit(2)
