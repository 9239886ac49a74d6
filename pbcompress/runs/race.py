"""Which of two networks becomes the result: a short trial of both, and validation decides."""

from dataclasses import dataclass, replace

from pbcompress.core.text_tables import figure
from pbcompress.recovery.policy import is_better
from pbcompress.recovery.trial import remainder_of, trial_of
from pbcompress.runs.contender_training import ContenderSpec, ContenderTraining
from pbcompress.runs.contenders import Contender
from pbcompress.training.history import History

__all__ = ["Outcome", "race"]


@dataclass(frozen=True)
class Outcome:
    """The networks that a job made, one of which is its result.

    Attributes:
        chosen: The result.
        other: The network beside it: the control, or what lost the trial; None if there is none.
        note: How it was chosen, in a sentence.
    """

    chosen: Contender
    other: Contender | None
    note: str

    @property
    def history(self) -> History:
        """Every epoch of every network."""
        contenders = [contender for contender in (self.chosen, self.other) if contender is not None]
        return History.joined(
            [contender.history for contender in contenders if contender.history is not None]
        )


def race(
    training: ContenderTraining, grown: ContenderSpec, wide: ContenderSpec, *, control: bool
) -> Outcome:
    """Give both networks a trial, and the better one on validation the rest of the training.

    Args:
        training: Trains them.
        grown: With dendrites.
        wide: By width alone.
        control: Whether the loser is trained to the end too.
    """
    task, recovery = training.experiment.task, grown.config.recovery
    small = replace(grown, config=trial_of(grown.config))
    first = training.train(small, is_trial=True)
    second = training.train(wide, is_trial=True, lengths=first.phase_lengths)
    assert first.score is not None
    assert second.score is not None
    of_grown, of_wide = first.score.val, second.score.val
    is_grown = is_better(task.score(of_grown), task.score(of_wide), 0, recovery)
    epochs = sum(first.phase_lengths)

    def train_on(spec: ContenderSpec, trial: Contender) -> Contender:
        rest = remainder_of(grown.config, 2 * epochs, trial.sets)
        return training.train_on(replace(spec, config=rest), trial)

    pairs = [(grown, first), (wide, second)]
    winner, loser = pairs if is_grown else pairs[::-1]
    chosen = train_on(*winner)
    other = train_on(*loser) if control else loser[1]
    note = (
        f"After a trial of {epochs} epochs each, {task.metric_name} on validation was "
        f"{figure(of_grown)} with dendrites and {figure(of_wide)} by width alone, so "
        f"{'dendrites' if is_grown else 'width alone'} had the rest of the training."
    )
    return Outcome(chosen, other, note)
