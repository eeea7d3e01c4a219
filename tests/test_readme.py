"""What the README shows in Python runs as it stands, block after block."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_readme_s_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 3
    exec(compile("\n".join(blocks), "README.md", "exec"), {})


def test_the_readme_s_pictures_and_commands_exist():
    root = Path(__file__).parent.parent
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (root / picture).is_file(), picture
    for module in set(re.findall(r"python -m (launch\.\w+)", README)):
        assert (root / (module.replace(".", "/") + ".py")).is_file(), module
