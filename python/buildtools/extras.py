"""Prints the requirements of extras of the installed project: `python extras.py bench test`.

They install what an extra asks for without installing, and so rebuilding, the project itself.
"""

import sys
from importlib.metadata import requires

markers = tuple(f'extra == "{extra}"' for extra in sys.argv[1:])
print(*(line.split(";")[0].strip() for line in requires("fusedstep") if line.endswith(markers)))
