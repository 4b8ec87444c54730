"""Prints the requirements of extras in pyproject.toml: `python extras.py bench test`.

pip installs what an extra asks for only together with the project, which would compile it. A line
has no spaces, so that a shell can pass it on as one word.
"""

import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
EXTRAS = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]

for extra in sys.argv[1:]:
    for requirement in EXTRAS[extra]:
        print(requirement.replace(" ", ""))
