"""The C++ module: what torch's dispatcher does not carry. Its ops are torch.ops.fusedstep."""

from typing import Any

from torch import Tensor

class TensorTable:
    """Where the tensors of a step are; csrc/optim/tensor_table.h."""

    def __init__(self) -> None: ...
    @property
    def address(self) -> int: ...
    def open(
        self,
        params: list[Tensor],
        grads: list[Tensor | None] | None,
        states: list[dict[str, Any]],
        rows: list[int],
        names: list[tuple[str, ...]],
        sharded: bool,
    ) -> tuple[list[Tensor], list[int]] | None: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_chunks(self) -> int: ...
    @property
    def num_launches(self) -> int: ...
    @property
    def layout_version(self) -> int: ...

class PlainList:
    """Tensors that are what their memory says, for ops without boxing; csrc/optim/plain_list.h."""

    @staticmethod
    def of(tensors: list[Tensor]) -> PlainList | None: ...
    @staticmethod
    def of_gradients(parameters: list[Tensor]) -> PlainList | None: ...
    @property
    def tensors(self) -> list[Tensor]: ...
    @property
    def address(self) -> int: ...

class StepPlan:
    """What the steps of an optimizer have in common; csrc/optim/step.h."""

    def __init__(
        self,
        rule: str,
        values: list[float],
        seed: int,
        lr_groups: list[int],
        max_norm: float,
        skip_nonfinite: bool,
    ) -> None: ...
    @property
    def address(self) -> int: ...

ROLES: dict[str, int]
BLOCK: int
CHUNK_SIZE: int
VERDICTS: dict[str, int]
PINV_CODES: dict[str, int]
TINY: int
SVD_COLUMNS: int
DEVICE: Any  # a capsule

def gram_error(rows: int, columns: int) -> float: ...
def use_device(type: str, device: Any, reason: str = "") -> Any: ...
def has_solvers(type: str) -> bool: ...
def no_cuda(reason: str) -> str: ...
def build_facts() -> dict[str, str]: ...
def rule_fields(rule: str) -> list[str]: ...
def has_one_key_per_chunk(first: int, size: int) -> bool: ...
def same_entries(groups: list[dict[str, Any]], entries: list[Any]) -> bool: ...
def states_of(
    groups: list[dict[str, Any]],
    params: list[Tensor],
    sizes: list[int],
    state: Any,
    keys: list[Tensor],
) -> list[dict[str, Any]] | None: ...
