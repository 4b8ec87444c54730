"""The study of number formats: its replay of the moments, and its model of the formats chosen."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rich", reason="needs the bench extra: rich")
pytest.importorskip("tokenizers", reason="needs the bench extra: tokenizers")

from bench import state_formats as study
from tests.reference.random import random16


@pytest.fixture
def grads() -> np.ndarray:
    generator = np.random.default_rng(0)
    return (generator.normal(size=(20, 512)) * 10.0 ** generator.uniform(-3, 0, 512)).astype("f4")


def test_moments_stored_exactly_have_no_error(grads) -> None:
    errors = study.replay(grads, (0.9, 0.95), study.Format("", ""))
    assert (errors.update, errors.bias, errors.to_zero) == (0, 0, 0)
    assert errors.along == pytest.approx(0, abs=1e-6)
    assert 0.5 < errors.largest < 1.5


def test_formats_by_levels_are_those_of_the_kernels(grads) -> None:
    first = study.by_levels(study.tapered_levels(2, 2, 129), stochastic=True, zero=True)
    second = study.by_levels(study.tapered_levels(4, 4, 256), stochastic=True, zero=True)
    random = random16(0, 0, 1, 0, 512)
    for by_levels, by_codes, x in (
        (first, study.to_signed, grads[0]),
        (second, study.to_unsigned, grads[0] ** 2),
    ):
        # The kernels add the random bits and round down, which is away from zero below zero.
        mirrored = np.where(x < 0, random, 0xFFFF - random).astype(np.uint16)
        np.testing.assert_allclose(by_levels(x, mirrored), by_codes(x, random), rtol=1e-5)


def test_every_format_has_an_error_and_a_finer_one_a_smaller(grads) -> None:
    for forms in (list(study.first_formats()), list(study.second_formats())):
        errors = {(f.name, f.rounding): study.replay(grads, (0.9, 0.95), f).update for f in forms}
        assert len(errors) == len(forms)
        assert min(errors.values()) > 0
        (chosen,) = [e for (name, _), e in errors.items() if name.startswith("CHOSEN:")]
        assert errors["bfloat16", "stochastic"] < chosen < errors["linear", "stochastic"]
