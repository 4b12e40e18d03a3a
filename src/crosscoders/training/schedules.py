"""Schedules: pure functions of the part of the run that has passed, so that resuming is exact."""

from crosscoders._typing import typed


@typed
def learning_rate_factor(progress: float, *, warmup_fraction: float, decay_fraction: float) -> float:
    """Linear warm-up from 0, constant 1, linear decay to 0.

    Args:
        progress: Part of the run that has passed, from 0 to 1.
        warmup_fraction: Part of the run that is warm-up.
        decay_fraction: Part of the run, at its end, that is decay.

    Returns:
        min(1, progress / warmup_fraction, (1 - progress) / decay_fraction), not below 0.
    """
    rising = progress / warmup_fraction if warmup_fraction > 0 else 1.0
    falling = (1.0 - progress) / decay_fraction if decay_fraction > 0 else 1.0
    return max(0.0, min(1.0, rising, falling))


@typed
def part_of_run(tokens: int, *, total_tokens: int, name: str) -> float:
    """A length in tokens as a part of the run: `tokens / total_tokens`.

    Args:
        tokens: The length.
        total_tokens: Length of the run.
        name: What the message calls the length.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: It is longer than the run.
    """
    if tokens > total_tokens:
        raise ValueError(
            f"TrainerConfig: {name}={tokens} is longer than the run of {total_tokens} tokens; lower {name}, "
            f"or set {name.replace('tokens', 'fraction')}, which is a part of the run, instead."
        )
    return tokens / total_tokens
