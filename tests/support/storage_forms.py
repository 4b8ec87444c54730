"""Forms in which parameters and states are stored, and a rule's step by the ops alone in each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fusedstep import _C
from fusedstep.optim.blocks import blocks_of
from fusedstep.optim.hyperparameters import in_order
from fusedstep.optim.state import Role, compute_dtype
from tests.support.optimizers import Kind
from tests.support.tensors import assert_same_bits, make_params

SEED = 2**32 + 77
SIGNED = {"exp_avg", "grad_avg", "momentum_buffer"}  # what else there is is never negative


@dataclass(frozen=True)
class Form:
    """How parameters and what belongs to them are stored."""

    param: torch.dtype = torch.float32
    grad: torch.dtype = torch.float32
    state: torch.dtype | None = None  # None: the compute type; int8: uint8 where never negative
    master: torch.dtype | None = None
    average: bool = False
    stochastic: bool = False  # the parameters' rounding; that of the states always is

    @property
    def rounds(self) -> bool:
        """Whether something is rounded stochastically."""
        return self.stochastic or self.state is not None or self.master == torch.uint8

    def __str__(self) -> str:
        dtypes = [f"{name} {getattr(self, name)}" for name in ("param", "grad", "state", "master")]
        flags = [name for name in ("average", "stochastic") if getattr(self, name)]
        return ", ".join(x.replace("torch.", "") for x in dtypes + flags if "None" not in x)


BF16 = torch.bfloat16
FORMS = [
    Form(state=BF16, average=True),
    Form(state=torch.int8),
    Form(param=torch.float64, grad=torch.float64, average=True),
    Form(param=torch.float64),
    Form(param=torch.float16, grad=torch.float16, state=torch.int8, average=True),
    Form(param=BF16, grad=BF16, stochastic=True, average=True),
    Form(param=BF16, grad=BF16, state=BF16, stochastic=True),
    Form(param=BF16, master=torch.float32, average=True),
    Form(param=BF16, grad=BF16, state=torch.int8, master=torch.int16),
    Form(param=BF16, grad=BF16, state=torch.int8, master=torch.uint8, average=True),
]


class StoredTable:
    """A tensor table over parameters with random values, states of zero and fixed gradients."""

    def __init__(
        self, kind: Kind, form: Form, *shapes: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> None:
        # For the rule's values and the names of its states.
        optimizer = kind.fitting({"state_dtype": form.state}).ours(make_params((1,)))
        self.rule = optimizer._rule
        self.params = [p.detach() for p in make_params(*shapes, dtype=form.param, device=device)]
        self.grads = [
            p.detach() for p in make_params(*shapes, dtype=form.grad, device=device, seed=1)
        ]
        (group,) = optimizer.param_groups
        values = optimizer._values(group, 0)
        values["ema_decay"] = 0.9 if form.average else 0.0
        values["stochastic_rounding"] = float(form.stochastic)
        self.plan = _C.StepPlan(self.rule, in_order(self.rule, [values]), SEED, [], 1.0, False)
        names = [name for name in optimizer._state_names(group) if name != "step"]
        self.arrays = [self._arrays_of(p, names, form) for p in self.params]
        self.table = _C.TensorTable()
        listed = [a for arrays in self.arrays for a in arrays.values()]
        roles = [int(role) for arrays in self.arrays for role in arrays]
        counts = [len(arrays) for arrays in self.arrays]
        positions = list(range(len(counts)))
        firsts = [1001 * i for i in positions]  # as of parts of tensors
        torch.ops.fusedstep.table_assign(
            self.table.address, self.params, listed, roles, counts, [len(counts)], positions, firsts
        )

    @staticmethod
    def _arrays_of(param: Tensor, names: list[str], form: Form) -> dict[int, Tensor]:
        computed = compute_dtype(param.dtype)
        arrays = {}
        for k, name in enumerate(names):
            dtype = form.state or computed
            if dtype == torch.int8:
                blocks = blocks_of(param.numel())
                arrays[Role.SCALE + k] = param.new_zeros(blocks, dtype=torch.float32)
                dtype = torch.int8 if name in SIGNED else torch.uint8
            arrays[Role.STATE + k] = torch.zeros_like(param, dtype=dtype)
        if form.master == torch.float32:
            arrays[Role.MASTER] = param.float()
        elif form.master is not None:
            arrays[Role.MASTER] = torch.zeros_like(param, dtype=form.master)
        if form.average:
            arrays[Role.AVERAGE] = param.to(computed, copy=True)
        arrays[Role.STEP] = param.new_zeros((), dtype=torch.float32)
        return arrays

    def step(self) -> None:
        """One step by the ops, with a norm of its own and gradients clipped to it."""
        norm = self.params[0].new_empty((), dtype=torch.float64)
        assert torch.ops.fusedstep.table_refresh(self.table.address, self.grads, [])
        torch.ops.fusedstep.table_step_(
            self.table.address, self.plan.address, self.params[0], [], norm, 2.0, None, None
        )  # fmt: skip
        self.norm = norm  # held: a captured step writes it at every replay

    def steps_done(self) -> set[float]:
        return {float(arrays[Role.STEP]) for arrays in self.arrays}


def assert_stored_alike(actual: StoredTable, expected: StoredTable) -> None:
    """Norm, parameters and every array of theirs, bit for bit; a NaN could hide a difference."""
    assert_same_bits(actual.norm, expected.norm, "norm")
    for i, (p, q) in enumerate(zip(actual.params, expected.params, strict=True)):
        assert_same_bits(p, q, f"params[{i}]")
        assert not q.isnan().any(), f"params[{i}] has a NaN"
        for role, array in expected.arrays[i].items():
            assert_same_bits(actual.arrays[i][role], array, f"role {int(role)} of params[{i}]")
