"""The forms that states and parameters are stored in, to and from what a rule computes with."""

from __future__ import annotations

import numpy as np

from tests.reference import quantize
from tests.reference.storage import round_to

# Array entries of one state: (values,), (bfloat16 bits as uint16,) or (codes, scales).
Stored = tuple[np.ndarray, ...]


def widen(bits: np.ndarray) -> np.ndarray:
    """float32 from the bits of bfloat16 (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """The bits (uint16) of float32 `x`, which bfloat16 can represent."""
    return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)


def load_state(stored: Stored) -> np.ndarray:
    """What a rule is given of a state; the type of the first array says how it is stored."""
    kind = stored[0].dtype
    if kind == np.uint16:
        return widen(*stored)
    if kind == np.int8:
        return quantize.decode_signed(*stored)
    if kind == np.uint8:
        return quantize.decode_unsigned(*stored)
    return stored[0]


def store_state(x: np.ndarray, form: Stored, random16: np.ndarray) -> Stored:
    """A rule's new state `x` in the form of the old one, with 16 random bits an element."""
    kind = form[0].dtype
    if kind == np.uint16:
        return (quantize.round_to_bfloat16_stochastically(x, random16),)
    if kind == np.int8:
        return quantize.encode_signed(x, random16)
    if kind == np.uint8:
        return quantize.encode_unsigned(x, random16)
    return (x,)


def master_or_written(master: np.ndarray, param: np.ndarray) -> np.ndarray:
    """The value of a bfloat16 parameter (widened) with a master: kernels/optim/master.h."""
    rounded = round_to(master, "bfloat16")
    same = (rounded.view(np.uint32) == param.view(np.uint32)) | (np.isnan(master) & np.isnan(param))
    return np.where(same, master, param)


def average(old: np.ndarray, param: np.ndarray, decay: float) -> np.ndarray:
    """The moving average of parameters: kernels/optim/average.h."""
    T = old.dtype.type
    with np.errstate(all="ignore"):
        return T(decay) * old + T(1 - decay) * param
