"""FusedOptimizer: what every optimizer does in addition to its rule, on top of torch's class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import cleandoc
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor, nn
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack

from fusedstep.checks import refuse, require_dense
from fusedstep.fakes import refuse_tracer
from fusedstep.optim import checkpoint
from fusedstep.optim.attributes import Attributes, Internals
from fusedstep.optim.averages import swapped_in
from fusedstep.optim.distributed import Place, dividing_optimizer, local, require_group_of
from fusedstep.optim.hyperparameters import (
    Group,
    Values,
    flag,
    numbers,
    parameter_labels,
    read_on_device,
)
from fusedstep.optim.implementation import is_native, mark_native, require_flags, require_native
from fusedstep.optim.options import (
    OptionArguments,
    Options,
    require_mode,
    require_mode_of,
)
from fusedstep.optim.state import StateSpec
from fusedstep.optim.step import Step
from fusedstep.optim.tables import Table, Tables


class FusedOptimizer(Attributes, torch.optim.Optimizer):
    """Base class of all optimizers: replaces only the step of a torch.optim class.

    List it before torch's class among the bases. With `fused=False` or `foreach=True` the step is
    torch's own, which serves as the reference. A subclass names its rule and sets the attributes
    and methods below.
    """

    _rule: ClassVar[str]  # the stem of its file in kernels/optim/rules
    _never_negative: ClassVar[frozenset[str]] = frozenset()  # states whose codes need no sign
    _not_in_torch: ClassVar[frozenset[str]] = frozenset()  # states that torch's class lacks
    _table_type: ClassVar[type[Table]] = Table
    _step_supports_amp_scaling: bool  # GradScaler reads it

    def _state_names(self, group: Group) -> tuple[str, ...]:
        """The entries of a parameter's state: "step" if the rule counts, then the rule's states."""
        raise TypeError(f"{type(self).__name__} does not say what state its parameters have")

    def _rule_values(self, group: Group, index: int | None) -> Values:
        """The values of the rule's own fields by name, checked, in a new dictionary.

        They depend on `group` and `options` alone, and are kept until one of these changes. `index`
        is the group's index for messages; None for the constructor's arguments.
        """
        raise TypeError(f"{type(self).__name__} does not say what values its rule has")

    def _initial(self, name: str, state: Mapping[str, Any]) -> float:
        """The initial value of the entry `name` of a parameter's state; `state` has the others."""
        return 0.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Adds the options to the arguments in the class's docstring."""
        super().__init_subclass__(**kwargs)
        if cls.__doc__ and Options.__doc__:
            # Python 3.13 and later have taken the indentation off already.
            marker = "    **options: See `fusedstep.optim.Options`.\n"
            arguments = cleandoc(Options.__doc__).split("Args:\n")[1].split("\nExample:")[0]
            cls.__doc__ = cleandoc(cls.__doc__).replace(marker, arguments.rstrip() + "\n")

    # --- construction ----------------------------------------------------------------------------

    @torch._disable_dynamo
    def _prepare(
        self,
        params: Any,
        arguments: Group,
        options: OptionArguments,
        *,
        fused: bool | None = True,
        foreach: bool | None = None,
        capturable: bool = True,
        differentiable: bool = False,
        extra_defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[Any, bool | None, bool | None]:
        """Checks a constructor's arguments before torch's class sees them.

        `extra_defaults`: those of `arguments` that torch's class does not take. Returns torch's
        `params`, `fused` and `foreach`.
        """
        name = type(self).__name__
        unknown = options.keys() - OptionArguments.__annotations__.keys()
        if unknown:
            raise TypeError(f"{name}: got an unexpected keyword argument {min(unknown)!r}")
        if not isinstance(params, (Tensor, set)):  # torch refuses the one and warns of the other
            params = list(params)
        chosen = {"fused": fused, "foreach": foreach}
        native = is_native(name, chosen, () if isinstance(params, Tensor) else params)
        checked = Options(**options).checked(name, native)
        dividing = dividing_optimizer()
        self._begin(checked, native, dividing is not None)
        self._require_whole(checked)
        if dividing is not None:
            require_group_of(name, dividing, checked.norm_groups)
        require_flags(name, {"capturable": capturable, "differentiable": differentiable})
        if not native:
            if fused is None and not foreach:  # the groups have decided
                fused, foreach = False, all(group.get("foreach") for group in params)
            return params, fused, foreach
        self._internals.extra_defaults.update(extra_defaults)
        self._values(arguments, None)
        if differentiable:
            raise RuntimeError("`fused` does not support `differentiable`")
        if foreach:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        return params, True, foreach

    def _begin(self, options: Options, native: bool, divided: bool) -> None:
        """Makes what the optimizer has in addition to torch's attributes."""
        tables = Tables(type(self).__name__, options.grad_attribute, self._table_type)
        self._internals = Internals(options, native, tables, {}, divided)
        self._step_supports_amp_scaling = native

    # --- the step --------------------------------------------------------------------------------

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Performs one update.

        Args:
            *args: `closure`, a function that reevaluates the model and returns the loss, as in
                torch.optim; or nothing.
            **kwargs: `closure` by name. Hooks get the arguments unchanged.

        Returns:
            The loss that `closure` returned, or None.
        """
        if torch.compiler.is_compiling():
            return self._step_outside_graph(*args, **kwargs)
        # torch's wrapper costs as much as the rest of a small step; it is for hooks and profilers.
        watched = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        )
        perform = self._watched_step if watched else self._plain_step
        return perform(*args, **kwargs)

    step.hooked = True  # type: ignore[attr-defined]  # tells torch.optim not to wrap it again

    def _plain_step(self, closure: Callable[[], Any] | None = None) -> Any:
        if not self._internals.native:
            bound: Any = super().step
            torchs = bound.__func__
            if getattr(torchs, "hooked", False):
                torchs = torchs.__wrapped__  # so that hooks run once
            return torchs(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # As torch.no_grad() does; its object would cost a small step a tenth of its time.
        enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            self._update()
        finally:
            torch._C._set_grad_enabled(enabled)
        return loss

    _watched_step = torch.optim.Optimizer.profile_hook_step(_plain_step)

    @torch._disable_dynamo
    def _step_outside_graph(self, *args: Any, **kwargs: Any) -> Any:
        """Breaks the graph of a compiled function: tables are compared and kept in eager mode."""
        return self.step(*args, **kwargs)

    def _update(self) -> None:
        internals, groups = self._internals, self.param_groups
        if internals.ema_swapped_in:
            self._require_own_values()
        if _len_torch_dispatch_stack() > 0 or _len_torch_function_stack() > 0:
            refuse_tracer(type(self).__name__)
        step, creating = internals.step, False
        if step is None or not step.is_current(groups):
            creating = not self.state and checkpoint.is_creating_state()
            step = internals.step = Step(
                type(self).__name__, self._rule, self.options, groups,
                [self._values(group, g) for g, group in enumerate(groups)],
                [self._spec(group) for group in groups],
            )  # fmt: skip
        step.grad_scale = getattr(self, "grad_scale", None)
        found = getattr(self, "found_inf", None)
        step.found_inf = None if found is None else self._verdict(found)
        tables = internals.tables
        active = tables.open(groups, self.state, step.specs, self._initial)
        try:
            if not creating:
                norm = None
                if active or tables.shared or self.options.norm_groups:
                    norm = self._write(step, active)  # all that can be refused has been
                step.advance_averages(tables, norm)
        finally:
            tables.close()

    def _verdict(self, found: Any) -> Tensor:
        """What GradScaler found in the gradients: a tensor, or the number 0 if it saw none."""
        if isinstance(found, Tensor):
            return found
        source = self.options.grad_attribute
        if source != "grad":
            must = f"be a tensor where gradients are in {source}, which GradScaler does not read"
            refuse(type(self).__name__, "found_inf", must, found, TypeError)
        return torch.zeros(())

    def _values(self, group: Group, index: int | None) -> Values:
        """The values of all fields of a parameter group by name, checked."""
        options, values = self.options, self._rule_values(group, index)
        lr = group["lr"]
        if type(lr) is float and lr >= 0:  # the usual case
            values["lr"] = lr
        elif read_on_device(lr):
            values["lr"] = 0.0
        else:
            values.update(numbers(type(self).__name__, group, index, ("lr",)))
        if group["maximize"] is False:
            values["maximize"] = 0.0
        else:
            values["maximize"] = flag(type(self).__name__, group, index, "maximize")
        values["ema_decay"] = options.ema_decay or 0.0
        values["stochastic_rounding"] = float(options.mode.of(group).stochastic_rounding)
        values["counted"] = 0.0
        return values

    def _spec(self, group: Group) -> StateSpec:
        """What state the parameters of a group have."""
        options = self.options
        names, mode = self._state_names(group), options.mode.of(group)
        return StateSpec(names, self._never_negative, mode, options.ema_decay is not None)

    def _write(self, step: Step, active: dict[Place, Table]) -> Tensor | None:
        """Computes the norm and updates everything in the tables; Muon does more.

        Returns the norm, 0-d float64, if one was needed.
        """
        self._internals.norm = norm = step.update(self._internals.tables, active)
        step.require_finite(norm)
        return norm

    # --- the moving average of the parameters ----------------------------------------------------

    def ema_parameters(self) -> list[Tensor]:
        """Returns the moving averages in the order of the parameters, group after group.

        Each has its parameter's shape and is float32, or float64 for a float64 parameter. It is the
        tensor that the next step writes to. For a parameter without a step, the parameter itself is
        returned.

        Raises:
            ValueError: `ema_decay` is None.
        """
        if self.options.ema_decay is None:
            refuse(type(self).__name__, "ema_decay", "be a number", None)
        params = (param for group in self.param_groups for param in group["params"])
        return [self.state.get(param, {}).get("ema", param) for param in params]

    @contextmanager
    def swap_ema(self, model: nn.Module | None = None) -> Iterator[None]:
        """Context manager: the parameters hold their moving averages, rounded to their dtype.

        On exit, with or without an exception, the parameters get their own values back, bit for
        bit. Writes inside the block are lost. Masters, remainders and corrections are not touched.
        Uses memory for one extra copy of the parameters. `step()` and `state_dict()` raise a
        RuntimeError inside the block; the model's `state_dict()` holds the averages there, so a
        checkpoint to resume from must be taken outside. A copy of the optimizer made inside has the
        averages as its parameters. Buffers, such as those of batch normalization, are not averaged.

        On entry and on exit, the copies that forwards made of the parameters are forgotten: those
        gathered by FSDP, cast by autocast, and cached by `torch.nn.utils.parametrize.cached`. All
        ranks must enter and exit together. Frozen, exported or quantized copies of the model are
        not known here and stay as they are.

        Args:
            model: The module with the parameters. Only FSDP1 (`FullyShardedDataParallel`) needs it;
                modules of FSDP2 (`fully_shard`) are found without it.

        Raises:
            ValueError: `ema_decay` is None, `model` is needed and missing, or an average does not
                have its parameter's shape. Nothing is changed.
            RuntimeError: The averages are already swapped in.

        Example:
            >>> with opt.swap_ema():
            ...     validate(model)
        """
        self._require_own_values()
        averages, internals = self.ema_parameters(), self._internals
        if internals.divided:
            must = "have all parameters where averages are swapped in"
            refuse(type(self).__name__, "the optimizer", must, "a ZeroRedundancyOptimizer's part")
        with swapped_in(type(self).__name__, self.param_groups, averages, model):
            internals.ema_swapped_in = True
            try:
                yield
            finally:
                internals.ema_swapped_in = False

    def _require_own_values(self) -> None:
        if self._internals.ema_swapped_in:
            raise RuntimeError(
                f"{type(self).__name__}: parameters must hold their own values, got their averages "
                "(swap_ema is in effect)"
            )

    # --- groups, copies, checkpoints -------------------------------------------------------------

    @torch._disable_dynamo
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as torch.optim.Optimizer does.

        Args:
            param_group: `{"params": tensors}` and the values that differ from the defaults,
                including `state_dtype`, `master` and `stochastic_rounding`.

        Raises:
            ValueError, TypeError: The step would refuse the group. The group is not added.
        """
        name = type(self).__name__
        if not hasattr(self, "_internals"):  # a subclass has called torch's constructor alone
            differentiable = self.defaults.get("differentiable")
            native = is_native(name, self.defaults) and not differentiable
            self._begin(Options(), native, dividing_optimizer() is not None)
        native, where = self._internals.native, f"param_groups[{len(self.param_groups)}]"
        if isinstance(param_group, dict):  # torch refuses others
            require_native(name, where, param_group, native)
        self.defaults.update(self._internals.extra_defaults)
        self._append_group(param_group)
        if not native:
            return
        try:
            group = self.param_groups[-1]
            require_flags(name, group, where + "['{}']")
            mark_native(group)
            mode = require_mode(name, self.options.mode.of(group), where + "['{}']")
            group.update({key: value for key, value in mode._asdict().items() if key in group})
            labels = parameter_labels(group, f"{where}['params']")
            for label, param in zip(labels, group["params"], strict=True):
                require_dense(name, label, local(param), meta=True)
                require_mode_of(name, label, param, mode)
            self._values(group, len(self.param_groups) - 1)
        except Exception:
            self.param_groups.pop()
            raise

    def _append_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        internals = self._internals
        ours = {"_options": internals.options, "_native": internals.native}
        return super().__getstate__() | ours | {"_divided": internals.divided}

    @torch._disable_dynamo
    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a pickle's attributes, or groups and state from torch's `load_state_dict`."""
        state = dict(state)
        if "_options" in state:
            options, native = state.pop("_options"), state.pop("_native")
            self._begin(options, native, state.pop("_divided", False))
        elif not hasattr(self, "_internals"):  # the attributes of an optimizer of torch's class
            native = is_native(type(self).__name__, state.get("defaults", {}))
            self._begin(Options(), native, False)
        defaults = state.get("defaults") or self.defaults
        known = set(defaults)
        super().__setstate__(state)
        for name in defaults.keys() - known:  # torch adds "differentiable" to every class's
            del defaults[name]
        self._internals.tables.forget()  # but keep them: captured graphs may point to them
        self._internals.step = self._internals.norm = None
        if self._internals.native:
            self._step_supports_amp_scaling = True
            for group in self.param_groups:  # a checkpoint may come from another implementation
                mark_native(group)
                for name, value in defaults.items():
                    group.setdefault(name, value)

    @torch._disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """Returns a checkpoint, as torch.optim.Optimizer does.

        The 16-bit `remainder` of a parameter is returned as its two bytes, `remainder.high` and
        `remainder.low`, because neither gloo nor NCCL sends 16-bit integers. 8-bit codes are
        returned as `<name>.codes`, with their scales as `<name>_scale`, if the parameter is
        contiguous and some of its last dimensions, the first not among them, multiply to a multiple
        of 128. Other 8-bit state is decoded to float32, as DTensors of that kind keep it.
        All state of FSDP1's parameters is returned in float32, because FSDP1 sends one dtype for
        each parameter. `load_state_dict` restores the bits. The two bytes and what is decoded are
        copies: steps in the block of `torch.optim.swap_in_optimizer_params_and_state` write to all
        state that was swapped in but these; call `state_dict()` before the block ends to keep them.

        Raises:
            RuntimeError: The averages are swapped in (`swap_ema`).
        """
        self._require_own_values()
        with checkpoint.saving(self):
            return super().state_dict()

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint, as torch.optim.Optimizer does, without rounding its state.

        torch casts all state to the parameter's dtype, which would round the float32 moments of a
        bfloat16 parameter. Here, floating-point state, such as torch.optim saves, is converted to
        the dtype that the optimizer keeps (`state_dtype`), and everything else is loaded bit for
        bit. Every tensor is copied, so that an optimizer whose `state_dict()` was loaded shares no
        state with this one. The options do not change.

        Args:
            state_dict: Result of `state_dict()` of this class or of torch's class of the same name.

        Raises:
            ValueError, TypeError: The checkpoint has another mode or shape, or is damaged; nothing
                is changed. `to_torch_state_dict` returns a checkpoint that every mode can load.
        """
        with checkpoint.loading(self):
            super().load_state_dict(state_dict)

    def _completed(self, saved: dict[str, Any], index: int) -> dict[str, Any]:
        """Group `index` of a checkpoint, completed by the defaults, as it will be loaded."""
        return self.defaults | saved

    def to_torch_state_dict(self) -> dict[str, Any]:
        """Returns a `state_dict()` that torch's class and every mode of this optimizer can load.

        State is decoded to float32 (float64 for float64 parameters). Masters, averages and other
        entries that torch's class lacks are left out. Lion, which torch does not have, returns a
        Lion checkpoint in float32.
        """
        return checkpoint.exported(self)
