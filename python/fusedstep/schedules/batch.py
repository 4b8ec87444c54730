"""Batch size as a pure function of the tokens seen."""

from fusedstep.checks import refuse, require_count


def batch_size_ramp(tokens: int, *, start: int, end: int, ramp_tokens: int) -> int:
    """Batch size after `tokens` tokens: from `start` linearly to `end` over `ramp_tokens`.

        start + floor((end - start) tokens / ramp_tokens)     while tokens < ramp_tokens
        end                                                   from then on

    `start` and `end` are in whatever the caller counts a batch in (sequences, tokens); the
    result is rounded down, in exact integer arithmetic, so that it is the same everywhere. Early
    gradients of a language model agree with each other, so that a small batch tells as much.

    Raises TypeError for an argument that is no integer, ValueError for `tokens` or
    `ramp_tokens` below zero, `start < 1` or `end < start`.

    Source: Brown et al. 2020, "Language Models are Few-Shot Learners", appendix B.
    """
    name = "batch_size_ramp"
    tokens = require_count(name, "tokens", tokens)
    start = require_count(name, "start", start, least=1)
    end = require_count(name, "end", end)
    ramp_tokens = require_count(name, "ramp_tokens", ramp_tokens)
    if end < start:
        refuse(name, "end", f"be at least start ({start})", end)
    if tokens >= ramp_tokens:
        return end
    return start + (end - start) * tokens // ramp_tokens
