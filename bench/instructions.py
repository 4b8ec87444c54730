"""Counts the instructions of the hot paths and compares them with bench/instructions.txt.

    python -m bench.instructions             status 1 where a path costs more or less than is kept
    python -m bench.instructions --update    write what was counted
    python -m bench.instructions --path AdamW --path norm

Callgrind counts, so what else the machine does changes nothing, and one processor is enough. Loops
may leave what is kept by 2 %, Python's paths by 6 %, whose counts vary with the names and addresses
that a process has: by up to 4 % from one folder to another. A path that got cheaper fails as well,
for the file would hide the next rise.

What decides a count is the key of its section: the compiler and the instruction set that valgrind
offers, which lacks AVX-512, so that the kernels run their clones for AVX2; for Python's paths also
torch's version, Python's, and how that was compiled. A section whose key is not in the file is not
compared, and the program says so. Status 2 where valgrind or a C compiler is missing.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from bench.instruction_paths import PATHS
from bench.record import ROOT, text_table
from fusedstep.build import FACTS

MARGINS = {"loops": 0.02, "host": 0.06}
KEPT = Path(__file__).with_suffix(".txt")
WARM_UP = 3  # calls: state, tables, code that Python specializes
COUNTED = 3  # calls, whose median counts

Counts = dict[str, float]  # by path
Sections = dict[str, Counts]  # by key

# Callgrind's requests are sequences of instructions, which valgrind's header writes.
REQUESTS = """#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void zero(void) { CALLGRIND_ZERO_STATS; }
void dump(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
#ifdef __x86_64__
const char* level(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") ? "AVX-512" :
         __builtin_cpu_supports("avx2") ? "AVX2" : "SSE2";
}
#else
const char* level(void) { return "no clones"; }
#endif
"""


class Missing(Exception):
    """Something that counting needs is not there; the message says what to do."""


# --- the process under callgrind ------------------------------------------------------------------


def python_build() -> str:
    """Python's version, its compiler, and the options that change its machine code."""
    version = ".".join(platform.python_version_tuple()[:2])
    given = sysconfig.get_config_var("CONFIG_ARGS") or ""
    speed = ("--enable-shared", "--enable-optimizations", "--with-lto")
    options = " ".join(option for option in speed if option in given)
    return f"Python {version} ({platform.python_compiler()} {options})"


def run_counted(library: str, names: Iterable[str]) -> None:
    """Prints the keys of both parts, then dumps a profile for every call that is counted."""
    requests = ctypes.CDLL(library)
    requests.level.restype = ctypes.c_char_p
    loops = f"{FACTS['compiler']}, {platform.machine()}, {requests.level().decode()}"
    host = f"{python_build()}, torch {torch.__version__.split('+')[0]}, {loops}"
    print(f"loops: {loops}\nhost: {host}", flush=True)

    torch.set_num_threads(1)
    works = {}
    for path in map(PATHS.__getitem__, names):
        for size in path.sizes:
            torch.manual_seed(0)
            works[path.name, size] = path.work(size)
    for work in works.values():
        for _ in range(WARM_UP):
            work.before()
            work.call()
    gc.collect()
    gc.disable()
    requests.start()
    for (name, size), work in works.items():
        for _ in range(COUNTED):
            work.before()
            requests.zero()
            work.call()
            requests.dump(f"{name}: {size}".encode())
    sys.stdout.flush()
    os._exit(0)  # what Python frees at its end takes minutes under callgrind


# --- counting -------------------------------------------------------------------------------------


def compile_requests(folder: Path) -> Path:
    """The library that makes callgrind's requests; raises Missing without what that takes."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if shutil.which("valgrind") is None or compiler is None:
        raise Missing("valgrind and a C compiler must be on PATH: apt-get install valgrind gcc")
    source, library = folder / "requests.c", folder / "requests.so"
    source.write_text(REQUESTS)
    command = [compiler, "-O1", "-shared", "-fPIC", str(source), "-o", str(library)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise Missing(f"valgrind's header must compile, got\n{made.stderr}")
    return library


def count(paths: Sequence[str]) -> tuple[dict[str, str], dict[tuple[str, int], int]]:
    """The keys of both parts; the instructions of a call, by path and size."""
    with tempfile.TemporaryDirectory() as folder:
        library = compile_requests(Path(folder))
        code = "import sys; from bench.instructions import run_counted; "
        code += "run_counted(sys.argv[1], sys.argv[2:])"
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--quiet"]
        command += [f"--callgrind-out-file={folder}/out", sys.executable, "-c", code]
        # The same hashes each time; of MKL the same kernels on every processor.
        fixed = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE"}
        run = subprocess.run(
            [*command, str(library), *paths],
            cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **fixed},
        )  # fmt: skip
        profiles = [file.read_text() for file in sorted(Path(folder).glob("out.*"))]
    keys = dict(line.split(": ", 1) for line in run.stdout.splitlines())
    found: dict[tuple[str, int], list[int]] = {}
    for profile in profiles:
        name, size, total = read_profile(profile)
        found.setdefault((name, size), []).append(total)
    return keys, {key: sorted(totals)[len(totals) // 2] for key, totals in found.items()}


def read_profile(text: str) -> tuple[str, int, int]:
    """The path, the size and the instructions of what callgrind dumped at a request."""
    named = re.search(r"^desc: Trigger: Client Request: (.+): (\d+)$", text, re.MULTILINE)
    total = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
    if named is None or total is None:
        raise ValueError("a callgrind profile must have the name of a request, and totals")
    return named[1], int(named[2]), int(total[1])


# --- what is kept ---------------------------------------------------------------------------------


def read_sections(text: str) -> Sections:
    """From the text of instructions.txt: headings in brackets, then lines of path, unit, count."""
    sections: Sections = {}
    for line in text.splitlines():
        if line.startswith("["):
            counts = sections.setdefault(line.strip("[]"), {})
        elif line:
            name, number, _ = re.split(r" {2,}", line)
            counts[name] = float(number)
    return sections


def sections_text(sections: Sections) -> str:
    """The text of instructions.txt."""
    blocks = []
    for key, counts in sections.items():
        lines = [[name, digits(counts[name]), PATHS[name].unit] for name in PATHS if name in counts]
        blocks.append(f"[{key}]\n{text_table(lines, right=(1,))}\n")
    return "\n".join(blocks)


def digits(number: float) -> str:
    """Five digits at least, which is less than the margins see."""
    return f"{number:.0f}" if number >= 1e4 else f"{number:.5g}"


def differences(margin: float, kept: Counts, found: Counts) -> list[str]:
    """A sentence for each path that is kept and left that by more than the margin."""
    return [
        f"{name}: expected {digits(kept[name])} within {margin:.0%}, got {digits(number)} "
        f"({number / kept[name] - 1:+.1%})"
        for name, number in found.items()
        if name in kept and abs(number - kept[name]) > margin * kept[name]
    ]


def compare(part: str, key: str, kept: Sections, found: Counts) -> list[str]:
    """Prints the part's table; a sentence for each path that is not as it is kept."""
    section = f"{part}: {key}"
    if section not in kept:
        print(
            f"\n[{section}] is not compared: {KEPT.name} has no such compiler, instruction set or"
        )
        print("versions, but", " ".join(f"[{key}]" for key in kept) or "nothing")
        return []
    counts = kept[section]
    lines = [["path", "kept", "counted"]]
    lines += [[name, digits(counts.get(name, 0)), digits(number)] for name, number in found.items()]
    print(f"\n{section}\n{text_table(lines, right=(1, 2))}")
    return [
        *differences(MARGINS[part], counts, found),
        *(f"{name}: was not expected" for name in found.keys() - counts.keys()),
    ]


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    add = options.add_argument
    add("--path", choices=list(PATHS), metavar="NAME", action="append", help="default: all")
    add("--update", action="store_true", help="write what was counted")
    return options.parse_args()


def main(file: Path = KEPT) -> int:
    options = arguments()
    names = options.path or list(PATHS)
    try:
        keys, calls = count(names)
    except Missing as error:
        print(f"bench.instructions: {error}")
        return 2
    found: dict[str, Counts] = {part: {} for part in keys}
    for path in map(PATHS.__getitem__, names):
        found[path.part][path.name] = path.cost([calls[path.name, size] for size in path.sizes])
    kept = read_sections(file.read_text())
    if options.update:
        for part, counts in found.items():
            section = f"{part}: {keys[part]}"
            kept[section] = {**(kept.get(section, {}) if options.path else {}), **counts}
        file.write_text(sections_text(kept))
    lines = [line for part in found for line in compare(part, keys[part], kept, found[part])]
    kept_names = {name for counts in kept.values() for name in counts}
    lines += [f"{name}: is kept but is no path" for name in sorted(kept_names - PATHS.keys())]
    if lines:
        print("\n" + "\n".join(lines))
        print("Where the change means it: python -m bench.instructions --update")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
