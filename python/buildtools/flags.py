"""The compiler flags of every kernel; `python flags.py` prints those that CMake needs, too."""

from __future__ import annotations

import sysconfig

STANDARD = ["-std=c++20"]

# The same arithmetic on every instruction set: no contraction, nothing reordered. errno and traps
# are given up because they keep square roots and comparisons from being vectorised.
CXX_NUMERICS = ["-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

# The same on a GPU: no contraction, IEEE division and square root, denormals kept.
NVCC_NUMERICS = ["--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false"]

# Functions that take vectors are inlined, so it does not matter how narrower instruction sets pass
# them: that warning does not apply here.
CXX_WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi"]


def width_flags(platform: str) -> list[str]:
    """For `platform`, as sysconfig.get_platform() names what is built for.

    Each function is compiled for several instruction sets of x86-64 (FUSEDSTEP_CLONES); the widest
    of them uses its full width only with this flag, which compilers for other CPUs refuse.
    """
    return ["-mprefer-vector-width=512"] if platform.endswith("x86_64") else []


# Python's own flags, which setuptools puts first, may let signed integers overflow. Then a loop
# with an int counter is not known to walk through memory in steps, and is not vectorised.
CXX_COUNTERS = ["-fstrict-overflow"]

COMMON_FLAGS = [*STANDARD, "-O3", "-g0", "-fvisibility=hidden", *CXX_NUMERICS, *CXX_WARNINGS]
COMMON_FLAGS += CXX_COUNTERS
CXX_FLAGS = [*COMMON_FLAGS, *width_flags(sysconfig.get_platform())]

# Line numbers cost nothing at run time and let compute-sanitizer name the line it complains about.
NVCC_FLAGS = [*STANDARD, "-O3", "-lineinfo", *NVCC_NUMERICS]
NVCC_FLAGS += ["-Xcompiler=" + ",".join(["-fvisibility=hidden", *CXX_NUMERICS])]

if __name__ == "__main__":
    print(*CXX_NUMERICS, *CXX_WARNINGS, sep=";")
