"""Two networks for the training of one: a short trial of each, and the rest for the better one."""

from dataclasses import replace

from pbcompress.config.whole import CompressConfig
from pbcompress.recovery.policy import planned_epochs, thaw_length

__all__ = ["remainder_of", "trial_of"]


def trial_of(config: CompressConfig) -> CompressConfig:
    """Return a recovery in small: every phase shorter by ``RecoveryConfig.trial``, sets stay.

    Example:
        >>> from pbcompress import RecoveryConfig
        >>> config = CompressConfig(recovery=RecoveryConfig(epochs=40, trial=0.1))
        >>> trial_of(config).recovery.epochs
        4
    """
    r = config.recovery

    def part(epochs: int) -> int:
        return max(1, round(r.trial * epochs))

    thaw = thaw_length(r, config.dendrites)
    recovery = replace(
        r,
        epochs=part(r.epochs),
        dendrite_epochs=part(r.dendrite_epochs),
        thaw_epochs=part(thaw) if thaw else 0,
        improvement=(-1.0,),
        max_failures=1,
        max_epochs=None,
        max_minutes=r.max_minutes and r.max_minutes * r.trial,
    )
    return replace(config, recovery=recovery)


def remainder_of(config: CompressConfig, spent: int, sets: int) -> CompressConfig:
    """Return what is left of a recovery after its trials, for the network that won.

    Args:
        config: The whole recovery.
        spent: Epochs of all trials.
        sets: Sets that the network has; no more will grow.

    Returns:
        A neuron phase and, where the whole one ends with a thaw, a shorter thaw: at least one
        epoch, and with the trials the epochs of the whole recovery.
    """
    r = config.recovery
    whole = planned_epochs(r, config.dendrites)
    left = max(1, (whole if r.max_epochs is None else min(whole, r.max_epochs)) - spent)
    thaw = left * thaw_length(r, config.dendrites) // whole if sets else 0
    recovery = replace(
        r,
        epochs=left - thaw,
        thaw_epochs=thaw,
        max_failures=1,
        max_epochs=None,
        max_minutes=r.max_minutes and r.max_minutes * max(1 - 2 * r.trial, r.trial),
    )
    return replace(config, recovery=recovery, dendrites=replace(config.dendrites, max_sets=sets))
