"""The fields of a rule, kernels/optim/rule.h: what is not listed by name does not compile."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from python.buildtools.flags import CXX_FLAGS

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
RULE = """
#include "kernels/optim/rule.h"

namespace fusedstep::scaled {{

struct Group {{
  {members}

  static constexpr auto fields() {{ return std::array{{{fields}}}; }}
}};

struct Rule {{
  using Group = scaled::Group;
  template <typename F>
  static void with_variant(const Group&, F&&) {{}}
}};

using Step = void();
static const RegisteredRule<Rule, Step> kRule("scaled", nullptr);

}}  // namespace fusedstep::scaled
"""
SCALE, POWER = 'Field{"scale", &Group::scale}', 'Field{"power", &Group::power}'


def messages(members: str, *fields: str) -> str:
    """What a compiler says to a rule whose Group has these members and fields; "" if nothing."""
    if COMPILER is None:
        pytest.skip("needs a C++ compiler on PATH")
    source = RULE.format(members=members, fields=", ".join(fields))
    command = [COMPILER, *CXX_FLAGS, f"-I{ROOT}", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == ("error:" not in done.stderr), done.stderr
    return done.stderr if done.returncode else ""


def test_doubles_that_are_all_listed_compile() -> None:
    assert messages("double scale, power;", SCALE, POWER) == ""


@pytest.mark.parametrize("kind", ["bool", "float", "int"])
def test_a_field_that_is_not_a_double_does_not_compile(kind: str) -> None:
    assert "error:" in messages(f"{kind} scale;", SCALE)
    assert "error:" in messages(f"double scale; {kind} power;", SCALE, POWER)


@pytest.mark.parametrize("kind", ["double", "bool"])
def test_a_member_that_is_not_listed_does_not_compile(kind: str) -> None:
    found = messages(f"double scale; {kind} power;", SCALE)
    assert "a member of the rule's Group is missing in its fields()" in found
