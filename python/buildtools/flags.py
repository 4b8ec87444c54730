"""The compiler flags of every kernel: setup.py builds with them, the CUDA report looks at them."""

import platform

# The same arithmetic on every instruction set: no contraction, nothing reordered. errno and traps
# are given up because they keep square roots and comparisons from being vectorised.
CXX_NUMERICS = ["-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

# The same on a GPU: no contraction, IEEE division and square root, denormals kept.
NVCC_NUMERICS = ["--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false"]

# Each function is compiled for several instruction sets (FUSEDSTEP_CLONES); the widest of them
# uses its full width only where told to. Whoever passes a vector is inlined, so that no one depends
# on how narrower instruction sets pass it.
CXX_WIDTH = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
CXX_WIDTH += ["-Wno-psabi"]

CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", *CXX_NUMERICS, *CXX_WIDTH]

# Line numbers cost nothing at run time and let compute-sanitizer name the line it complains about.
NVCC_FLAGS = ["-std=c++20", "-O3", "-lineinfo", *NVCC_NUMERICS]
NVCC_FLAGS += ["-Xcompiler=" + ",".join(["-fvisibility=hidden", *CXX_NUMERICS])]
