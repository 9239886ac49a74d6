"""The policy as tables: scores in, action out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbcompress import CompressConfig, DendriteConfig, RecoveryConfig
from pbcompress.recovery.policy import (
    Action,
    PhaseKind,
    PhaseLog,
    best_epoch,
    is_better,
    next_action,
    planned_epochs,
    sets_kept,
    thaw_length,
)
from pbcompress.recovery.trial import remainder_of, trial_of
from tests.support.configs import recovery_of

Log = list[PhaseLog]


def neuron(sets: int, *scores: float) -> PhaseLog:
    return PhaseLog(PhaseKind.NEURON, sets, scores, (0,) * len(scores))


def thaw(sets: int, *scores: float) -> PhaseLog:
    return PhaseLog(PhaseKind.THAW, sets, scores, (0,) * len(scores))


def dendrite(sets: int, *improved: int, score: float = 0.5) -> PhaseLog:
    return PhaseLog(PhaseKind.DENDRITE, sets, (score,) * len(improved), improved)


def action(log: Log, *, max_sets: int = 2, minutes: float = 0.0, **recovery: object) -> Action:
    lengths = {"epochs": 3, "dendrite_epochs": 4, "dendrite_patience": 2, "thaw_epochs": 0}
    config = recovery_of(**(lengths | recovery))
    return next_action(log, config, DendriteConfig(max_sets=max_sets), minutes=minutes)


GO, GROW, ACCEPT, STOP = Action.CONTINUE, Action.GROW, Action.ACCEPT, Action.STOP
THAW = Action.THAW
FIRST = neuron(0, 0.5, 0.5, 0.5)
DEFAULT = {"thaw_epochs": None}

ACTIONS = [
    # a neuron phase lasts as many epochs as it was given
    ("no epoch yet", [neuron(0)], {}, GO),
    ("phase not full", [neuron(0, 0.1, 0.2)], {}, GO),
    ("phase full", [neuron(0, 0.1, 0.2, 0.3)], {}, GROW),
    ("worse and worse, no patience", [neuron(0, 0.3, 0.2)], {}, GO),
    ("scores of zero", [neuron(0, 0.0, 0.0, 0.0)], {}, GROW),
    ("negative scores", [neuron(0, -3.0, -2.0, -1.0)], {}, GROW),
    # patience
    ("patience not used up", [neuron(0, 0.5, 0.4)], {"patience": 2, "epochs": 9}, GO),
    ("patience used up", [neuron(0, 0.5, 0.4, 0.3)], {"patience": 2, "epochs": 9}, GROW),
    ("equal is no gain", [neuron(0, 0.5, 0.5, 0.5)], {"patience": 2, "epochs": 9}, GROW),
    ("a gain starts anew", [neuron(0, 0.5, 0.4, 0.6, 0.5)], {"patience": 2, "epochs": 9}, GO),
    ("below the margin", [neuron(0, 0.5, 0.5004)], {"patience": 1, "epochs": 9}, GROW),
    ("above the margin", [neuron(0, 0.5, 0.5006)], {"patience": 1, "epochs": 9}, GO),
    ("slow gains add up", [neuron(0, 0.5, 0.5004, 0.5008)], {"patience": 2, "epochs": 9}, GO),
    ("any gain at zero", [neuron(0, 0.0, 5e-6)], {"patience": 1, "epochs": 9}, GO),
    ("negative, below margin", [neuron(0, -2.0, -1.999)], {"patience": 1, "epochs": 9}, GROW),
    ("negative, above margin", [neuron(0, -2.0, -1.997)], {"patience": 1, "epochs": 9}, GO),
    (
        "one set: smaller margin",
        [FIRST, neuron(1, 0.6, 0.6002)],
        {"patience": 1, "epochs": 9},
        GO,
    ),
    (
        "patience counts in its own phase",
        [FIRST, neuron(1, 0.4)],
        {"patience": 1, "epochs": 9},
        GO,
    ),
    # a dendrite phase
    ("no candidate epoch yet", [FIRST, dendrite(1)], {}, GO),
    ("candidates improve", [FIRST, dendrite(1, 5, 3, 1)], {}, GO),
    ("one epoch without", [FIRST, dendrite(1, 5, 0)], {}, GO),
    ("patience without", [FIRST, dendrite(1, 5, 0, 0)], {}, ACCEPT),
    ("not in a row", [FIRST, dendrite(1, 0, 1, 0)], {}, GO),
    ("longest dendrite phase", [FIRST, dendrite(1, 5, 4, 3, 2)], {}, ACCEPT),
    ("fewer epochs than patience", [FIRST, dendrite(1, 0)], {}, GO),
    ("scores play no part", [FIRST, dendrite(1, 5, 3, score=9.0)], {}, GO),
    # growth
    ("a set that helps", [FIRST, dendrite(1, 1), neuron(1, 0.6, 0.6, 0.7)], {}, GROW),
    ("all sets grown", [FIRST, neuron(1, 0.6, 0.6, 0.7)], {"max_sets": 1}, STOP),
    ("no set asked for", [FIRST], {"max_sets": 0}, STOP),
    # a thaw at the end
    ("after all sets", [FIRST, neuron(1, 0.6, 0.6, 0.7)], {"max_sets": 1, "thaw_epochs": 2}, THAW),
    ("none helped", [FIRST, neuron(1, 0.4, 0.4, 0.4)], {"max_failures": 1, "thaw_epochs": 2}, STOP),
    ("no dendrites", [FIRST], {"max_sets": 0, "thaw_epochs": 2}, STOP),
    ("sets first", [FIRST, neuron(1, 0.6, 0.6, 0.7)], {"thaw_epochs": 2}, GROW),
    ("thaw not full", [FIRST, neuron(1, 0.6, 0.6, 0.7), thaw(1, 0.1)], {"thaw_epochs": 2}, GO),
    ("thaw full", [FIRST, neuron(1, 0.6, 0.6, 0.7), thaw(1, 0.9, 0.9)], {"thaw_epochs": 2}, STOP),
    ("a thaw by default", [FIRST, neuron(1, *[0.6] * 3)], {"max_sets": 1} | DEFAULT, THAW),
    (
        "as long as a neuron phase",
        [neuron(1, *[0.6] * 3), thaw(1, 0.7, 0.7, 0.7)],
        {"max_sets": 1} | DEFAULT,
        STOP,
    ),
    ("no thaw", [neuron(1, 0.6)], {"max_sets": 1, "epochs": 1, "thaw_epochs": 0}, STOP),
    ("no set, phase not full", [neuron(0, 0.5)], {"max_sets": 0}, GO),
    ("one failure is forgiven", [FIRST, neuron(1, 0.4, 0.4, 0.4)], {}, GROW),
    ("equal fails", [FIRST, neuron(1, 0.5, 0.5, 0.5)], {"max_failures": 1}, STOP),
    (
        "two failures",
        [FIRST, neuron(1, 0.4, 0.4, 0.4), dendrite(1, 1), neuron(1, 0.3, 0.3, 0.3)],
        {},
        STOP,
    ),
    (
        "failure, then success, all grown",
        [FIRST, neuron(1, 0.4, 0.4, 0.4), neuron(1, 0.6, 0.6, 0.6)],
        {"max_sets": 1},
        STOP,
    ),
    (
        "failures need not be in a row",
        [FIRST, neuron(1, 0.4, 0.4, 0.4), neuron(1, 0.6, 0.6, 0.6), neuron(2, 0.1, 0.1, 0.1)],
        {"max_sets": 5},
        STOP,
    ),
    ("more sets than asked for at the start", [neuron(3, 0.5, 0.5, 0.5)], {}, STOP),
    ("fewer sets at the start", [neuron(1, 0.5, 0.5, 0.5)], {}, GROW),
    # bounds
    ("max_epochs in a neuron phase", [neuron(0, 0.5, 0.6)], {"max_epochs": 2}, STOP),
    ("max_epochs not reached", [neuron(0, 0.5)], {"max_epochs": 2}, GO),
    ("max_epochs in a dendrite phase", [FIRST, dendrite(1, 9)], {"max_epochs": 4}, STOP),
    ("max_epochs in the second", [FIRST, neuron(1, 0.9)], {"max_epochs": 4}, STOP),
    ("max_epochs at a border", [FIRST], {"max_epochs": 3}, STOP),
    ("max_minutes", [neuron(0, 0.5)], {"max_minutes": 2.0, "minutes": 2.0}, STOP),
    ("max_minutes not reached", [neuron(0, 0.5)], {"max_minutes": 2.0, "minutes": 1.9}, GO),
    ("max_minutes as candidates train", [FIRST, dendrite(1, 9)], {"max_minutes": 1.0}, GO),
    (
        "max_minutes over as candidates train",
        [FIRST, dendrite(1, 9)],
        {"max_minutes": 1.0, "minutes": 3.0},
        STOP,
    ),
]


def test_the_tables_are_whole() -> None:
    assert len(ACTIONS) == 55
    assert len({name for name, *_ in ACTIONS}) == 55
    assert len(KEPT) == 15


@pytest.mark.parametrize(
    ("log", "choices", "expected"), [c[1:] for c in ACTIONS], ids=[c[0] for c in ACTIONS]
)
def test_next_action(log: Log, choices: dict[str, object], expected: Action) -> None:
    assert action(log, **choices) is expected


# log, (kept, failed), best epoch
KEPT = [
    (
        "a thaw that helps",
        [neuron(0, 0.5), neuron(1, 0.6), thaw(1, 0.55, 0.7)],
        (1, 0),
        (2, 1),
    ),
    ("a thaw that does not", [neuron(0, 0.5), neuron(1, 0.6), thaw(1, 0.6)], (1, 0), (1, 0)),
    ("nothing scored", [neuron(0)], (0, 0), (-1, -1)),
    ("one phase", [neuron(0, 0.1, 0.3, 0.2)], (0, 0), (0, 1)),
    ("the last of equals", [neuron(0, 0.1, 0.3, 0.3)], (0, 0), (0, 2)),
    ("negative", [neuron(0, -0.3, -0.1, -0.2)], (0, 0), (0, 1)),
    ("zero", [neuron(0, 0.0, -1.0)], (0, 0), (0, 0)),
    ("dendrite phases do not count", [FIRST, dendrite(1, 1, 1, score=9)], (0, 0), (0, 2)),
    ("a set helps", [FIRST, dendrite(1, 1), neuron(1, 0.4, 0.7)], (1, 0), (2, 1)),
    ("a set fails", [FIRST, dendrite(1, 1), neuron(1, 0.4, 0.5004)], (0, 1), (0, 2)),
    ("margin of the second set", [FIRST, neuron(1, 0.6), neuron(2, 0.6002)], (2, 0), (2, 0)),
    ("margin of the third set", [neuron(2, 0.6), neuron(3, 0.60002)], (3, 0), (1, 0)),
    ("a failed set sets no bar", [FIRST, neuron(1, 0.5004), neuron(1, 0.5006)], (1, 1), (2, 0)),
    ("existing sets are kept", [neuron(2, 0.5), neuron(3, 0.4)], (2, 1), (0, 0)),
    ("phases of equal size", [neuron(0, 0.5), neuron(0, 0.5001)], (0, 0), (1, 0)),
]


@pytest.mark.parametrize(("log", "kept", "best"), [c[1:] for c in KEPT], ids=[c[0] for c in KEPT])
def test_sets_kept_and_best_epoch(log: Log, kept: tuple[int, int], best: tuple[int, int]) -> None:
    assert sets_kept(log, RecoveryConfig()) == kept
    assert best_epoch(log, RecoveryConfig()) == best


def test_margins_are_per_set_and_the_last_holds_for_more() -> None:
    config = RecoveryConfig(improvement=(0.1, 0.01))
    assert sets_kept([neuron(0, 1.0), neuron(1, 1.09)], config) == (0, 1)
    assert sets_kept([neuron(0, 1.0), neuron(1, 1.11)], config) == (1, 0)
    assert sets_kept([neuron(1, 1.0), neuron(2, 1.011)], config) == (2, 0)
    assert sets_kept([neuron(5, 1.0), neuron(6, 1.009)], config) == (5, 1)


@pytest.mark.parametrize(
    ("rule", "given", "expected"),
    [
        ("correlation", None, 7),
        ("gradient", None, 0),
        ("hybrid", None, 0),
        ("correlation", 0, 0),
        ("gradient", 2, 2),
    ],
)
def test_what_was_frozen_thaws_for_a_neuron_phase(
    rule: str, given: int | None, expected: int
) -> None:
    recovery = RecoveryConfig(epochs=7, thaw_epochs=given)
    assert thaw_length(recovery, DendriteConfig(rule=rule)) == expected


def test_a_log_survives_json() -> None:
    log = dendrite(2, 4, 0).with_epoch(-0.25, improved=3)
    assert PhaseLog.from_dict(log.to_dict()) == log
    assert (log.scores, log.improved) == ((0.5, 0.5, -0.25), (4, 0, 3))


# --- whole growths --------------------------------------------------------------------------------

recoveries = st.builds(
    RecoveryConfig,
    epochs=st.integers(1, 4),
    dendrite_epochs=st.integers(1, 3),
    patience=st.none() | st.integers(1, 3),
    dendrite_patience=st.integers(1, 3),
    max_failures=st.integers(1, 3),
    max_epochs=st.none() | st.integers(1, 20),
    thaw_epochs=st.none() | st.integers(0, 2),
)
scores = st.sampled_from([0.0, -1.0, -0.5, 0.5, 0.5 + 1e-6, 0.5003, 0.6, 1.0]) | st.floats(-2, 2)


def play(
    recovery: RecoveryConfig, max_sets: int, source: list[float], rule: str, sets: int
) -> tuple[Log, list[Action]]:
    """Follow the policy to its end, with scores from ``source`` again and again."""
    config = DendriteConfig(max_sets=max_sets, rule=rule)
    log, actions, turn = [neuron(sets)], [], 0
    while True:
        score = source[turn % len(source)]
        log[-1] = log[-1].with_epoch(score, improved=turn % 3)
        turn += 1
        actions.append(next_action(log, recovery, config))
        kept, _ = sets_kept(log, recovery)
        if actions[-1] is Action.STOP:
            return log, actions
        if actions[-1] is Action.GROW:
            log.append(neuron(kept + 1) if rule == "gradient" else dendrite(kept + 1))
        elif actions[-1] is Action.ACCEPT:
            log.append(neuron(log[-1].sets))
        elif actions[-1] is Action.THAW:
            log.append(thaw(kept))
        assert turn < 1000, "does not end"


@settings(max_examples=200, deadline=None)
@given(
    recovery=recoveries,
    max_sets=st.integers(0, 3),
    source=st.lists(scores, min_size=1, max_size=30),
    rule=st.sampled_from(["correlation", "gradient", "hybrid"]),
    sets=st.integers(0, 2),
)
def test_every_growth_ends_within_its_bounds(
    recovery: RecoveryConfig, max_sets: int, source: list[float], rule: str, sets: int
) -> None:
    log, actions = play(recovery, max_sets, source, rule, sets)
    assert (log, actions) == play(recovery, max_sets, source, rule, sets)
    epochs = sum(len(phase.scores) for phase in log)
    tries = max_sets + recovery.max_failures - 1 if max_sets else 0
    growing = recovery.epochs + tries * (recovery.epochs + recovery.dendrite_epochs)
    assert epochs <= growing + thaw_length(recovery, DendriteConfig(rule=rule))
    assert recovery.max_epochs is None or epochs <= recovery.max_epochs
    kept, failed = sets_kept(log, recovery)
    assert kept <= max(max_sets, sets)
    assert failed <= recovery.max_failures


@settings(max_examples=200, deadline=None)
@given(
    recovery=recoveries,
    source=st.lists(scores, min_size=1, max_size=30),
    sets=st.integers(0, 2),
)
def test_the_best_epoch_is_of_a_network_that_is_kept(
    recovery: RecoveryConfig, source: list[float], sets: int
) -> None:
    log, _ = play(recovery, 3, source, "correlation", sets)
    phase, epoch = best_epoch(log, recovery)
    kept, _ = sets_kept(log, recovery)
    assert log[phase].kind is not PhaseKind.DENDRITE
    assert log[phase].sets <= kept
    first = max(log[0].scores)
    assert log[phase].scores[epoch] >= first  # a growth never ends below its start
    if log[phase].sets > sets:
        assert log[phase].scores[epoch] > first + 0.9e-5 * abs(
            first
        )  # the smallest margin, less rounding


@settings(max_examples=100, deadline=None)
@given(recovery=recoveries, source=st.lists(scores, min_size=1, max_size=30))
def test_the_best_epoch_never_moves_back_to_an_unsaved_one(
    recovery: RecoveryConfig, source: list[float]
) -> None:
    log, _ = play(recovery, 3, source, "correlation", 0)
    saved = (-1, -1)
    for index, phase in enumerate(log):
        for epoch in range(len(phase.scores)):
            cut = PhaseLog(phase.kind, phase.sets, phase.scores[: epoch + 1])
            if best_epoch([*log[:index], cut], recovery) == (index, epoch):
                saved = (index, epoch)
    assert best_epoch(log, recovery) == saved


# --- a set that may cost ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margin", "top", "kept"),
    [(-1.0, 0.1, 1), (-0.5, 0.31, 1), (-0.5, 0.29, 0), (0.0, 0.6, 0), (0.0, 0.61, 1)],
)
def test_a_set_may_cost_as_much_as_the_margin_below_zero(margin, top, kept):
    config = RecoveryConfig(improvement=(margin,))
    log = [neuron(0, 0.5, 0.6), neuron(1, top - 0.05, top)]
    assert sets_kept(log, config) == (kept, 1 - kept)
    assert best_epoch(log, config) == ((1, 1) if kept else (0, 1))


def test_a_set_that_cost_is_what_the_next_one_is_measured_by():
    config = RecoveryConfig(improvement=(-1.0, 0.1))
    log = [neuron(0, 0.9), neuron(1, 0.5), neuron(2, 0.6)]
    assert sets_kept(log, config) == (2, 0)
    assert best_epoch(log, config) == (2, 0)


# --- the epochs of a whole growth, of its trial and of the rest -------------------------------


@st.composite
def recoveries(draw):
    rule = draw(st.sampled_from(["correlation", "gradient", "hybrid"]))
    dendrites = DendriteConfig(
        rule=rule, max_sets=draw(st.integers(1, 3)), at_start=draw(st.booleans())
    )
    recovery = RecoveryConfig(
        epochs=draw(st.integers(1, 60)),
        dendrite_epochs=draw(st.integers(1, 20)),
        thaw_epochs=draw(st.none() | st.integers(0, 20)),
        trial=draw(st.floats(0.02, 0.25)),
        patience=None,
        dendrite_patience=99,
        improvement=(-1.0,),
    )
    return CompressConfig(recovery=recovery, dendrites=dendrites)


def played(config):
    """Return the epochs of a growth in which every set stays, by the policy itself."""
    recovery, dendrites = config.recovery, config.dendrites
    starts_grown = dendrites.at_start and dendrites.max_sets
    grown = dendrite if dendrites.rule.kind != "gradient" else neuron
    log = [grown(1)] if starts_grown else [neuron(0)]
    while True:
        last = log[-1]
        log[-1] = last.with_epoch(0.5, 1)
        following = next_action(log, recovery, dendrites)
        if following is Action.STOP:
            return sum(len(phase.scores) for phase in log)
        if following is Action.GROW:
            log.append(grown(last.sets + 1))
        elif following is Action.ACCEPT:
            log.append(neuron(last.sets))
        elif following is Action.THAW:
            log.append(thaw(last.sets))


@given(recoveries())
@settings(max_examples=60, deadline=None)
def test_the_planned_epochs_are_those_that_the_policy_takes(config):
    assert played(config) == planned_epochs(config.recovery, config.dendrites)


@given(recoveries())
@settings(max_examples=60, deadline=None)
def test_trials_and_remainder_take_the_epochs_of_the_whole(config):
    whole = planned_epochs(config.recovery, config.dendrites)
    small = trial_of(config)
    trial = planned_epochs(small.recovery, small.dendrites)
    for sets in (0, config.dendrites.max_sets):
        rest = remainder_of(config, 2 * trial, sets)
        left = rest.recovery.epochs + rest.recovery.thaw_epochs
        assert left == max(1, whole - 2 * trial)
        assert rest.recovery.epochs >= 1
        assert rest.dendrites.max_sets == sets


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("sets", [0, 1, 2])
def test_what_counts_as_better_does_not_depend_on_the_unit(unit: float, sets: int) -> None:
    config = RecoveryConfig()
    for best in (-1.0, 1.0):
        gains = [1e-6, 9e-6, 2e-5, 2e-4, 2e-3, -1e-3]
        found = [is_better(unit * (best + g), unit * best, sets, config) for g in gains]
        assert found == [is_better(best + g, best, sets, config) for g in gains]
        assert found[0] is found[-1] is False
        assert found[4] is True
