"""Prints the requirements of one extra of the installed project: `python extras.py test`.

They install the extra without installing, and so rebuilding, the project itself.
"""

import sys
from importlib.metadata import requires

marker = f'extra == "{sys.argv[1]}"'
print(*(line.split(";")[0].strip() for line in requires("fusedstep") if line.endswith(marker)))
