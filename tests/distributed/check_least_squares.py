"""The last layer's sums over several processes: as if one had added everything."""

from __future__ import annotations

import pytest
import torch

from fusedstep.lm_head import LeastSquares
from tests.distributed.ranks import Ranks, assert_same_on_all_ranks, check

WIDTH, VOCABULARY = 6, 11


def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, WIDTH, generator=generator)
    return hidden, torch.randint(0, VOCABULARY, (50,), generator=generator)


@check(1, 2)
def sums_of_all_ranks_are_those_of_one(ranks: Ranks) -> None:
    hidden, tokens = example()
    alone = LeastSquares(WIDTH, VOCABULARY, scale=10.0)
    alone.update(hidden, tokens)
    mine = LeastSquares(WIDTH, VOCABULARY, scale=10.0)
    share = slice(0, 13) if ranks.rank == 0 else slice(13, 50)
    if ranks.world == 1:
        share = slice(None)
    mine.update(hidden[share], tokens[share])
    mine.solve([1.0])  # a factorisation that must not outlive the sums
    mine.all_reduce()
    assert mine.count == 50
    assert_same_on_all_ranks(mine.solve([1.0]), "weight")
    torch.testing.assert_close(mine.solve([1.0]), alone.solve([1.0]), rtol=1e-12, atol=1e-12)


@check(2)
def ranks_that_differ_in_size_all_refuse(ranks: Ranks) -> None:
    mine = LeastSquares(WIDTH, VOCABULARY + ranks.rank)
    mine.update(*example())
    before = {name: value * 1 for name, value in mine.state_dict().items()}
    with pytest.raises(ValueError, match=r"all_reduce: group must have one vocab_size and d_model"):
        mine.all_reduce()
    for name, value in mine.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[name])), name


@check(2)
def a_rank_without_tokens_takes_part(ranks: Ranks) -> None:
    mine = LeastSquares(WIDTH, VOCABULARY)
    if ranks.rank == 1:
        mine.update(*example())
    mine.all_reduce()
    assert mine.count == 50
    assert_same_on_all_ranks(mine.solve(), "weight")
