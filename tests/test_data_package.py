"""What importing the data package imports."""

import subprocess
import sys


def test_importing_data_imports_nothing_slow_that_only_one_data_set_needs():
    code = (
        "import sys, data; "
        "print({'tensorflow_datasets', 'array_record', 'sklearn', 'PIL'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
