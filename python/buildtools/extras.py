"""Prints the requirements of extras of the installed project: `python extras.py bench test`.

They install what an extra asks for without installing, and so rebuilding, the project itself.
"""

import sys
from importlib.metadata import requires

for extra in sys.argv[1:]:
    for line in requires("fusedstep"):
        requirement, found, _ = line.rpartition(f'extra == "{extra}"')
        if found:  # after "; ", or after another condition and " and "
            print(requirement.removesuffix(" and ").rstrip("; ").replace(" ", ""))
