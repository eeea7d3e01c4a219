"""What people run: `python -m launch.train` and its companions."""

import os

# Pictures are drawn into files; matplotlib is not to look for a window, nor to fail for one.
os.environ["MPLBACKEND"] = "agg"
