"""What a run tells of itself comes back from its folder, or is refused in a sentence."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pbcompress import CompressionError, StateMismatchError, compress
from pbcompress.runs.run_folder import read_facts, read_run, save_run
from pbcompress.runs.saved_network import save
from tests.support.changed_json import changes, rewrite
from tests.support.run_facts import VARIANTS, make_facts, make_history, make_variant, scored

SAMPLE = ([torch.zeros(1, 3)], [torch.zeros(1, 2)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_facts_and_history_come_back_as_they_were(variant: str, tmp_path: Path) -> None:
    facts, history = make_variant(variant)
    save_run(tmp_path, nn.Linear(3, 2), (), facts, history, SAMPLE)
    assert read_run(tmp_path) == (facts, history)
    assert read_facts(tmp_path) == facts


def test_a_metric_that_is_no_number_comes_back(tmp_path: Path) -> None:
    facts = make_facts(after=scored(make_facts().after, val=float("nan")))
    save_run(tmp_path, nn.Linear(3, 2), (), facts, make_history(), SAMPLE)
    score = read_facts(tmp_path).after.score
    assert score is not None
    assert math.isnan(score.val)


def test_a_run_of_compress_comes_back(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    result = compress(network, 0.5, example_inputs=torch.zeros(1, 8), run_dir=tmp_path)
    assert read_run(tmp_path) == (result.facts(), result.history)


def test_a_network_saved_without_facts_has_none(tmp_path: Path) -> None:
    save(tmp_path, nn.Linear(3, 2))
    with pytest.raises(StateMismatchError, match="without the facts"):
        read_run(tmp_path)


def unknown_field(state: dict[str, Any]) -> None:
    state["facts"]["before"]["colour"] = "red"


def missing_field(state: dict[str, Any]) -> None:
    del state["facts"]["after"]["cost"]["params"]


def another_type(state: dict[str, Any]) -> None:
    state["facts"]["seed"] = "seven"


def older(state: dict[str, Any]) -> None:
    state["version"] = 4


def newer(state: dict[str, Any]) -> None:
    state["version"] = 99


def another_kind(state: dict[str, Any]) -> None:
    state["kind"] = "pbcompress plan"


DAMAGES = {
    unknown_field: "before.colour is a field that is not known",
    missing_field: "after.cost.params is missing",
    another_type: "seed is 'seven'",
    older: "has version 4, which an older pbcompress wrote; this one reads version 5",
    newer: "has version 99; this pbcompress reads version 5. Update pbcompress",
    another_kind: "is JSON of another kind. Give a pbcompress run",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_is_refused_in_a_sentence_of_its_own(
    damage: Any, tmp_path: Path
) -> None:
    save_run(tmp_path, nn.Linear(3, 2), (), make_facts(), make_history(), SAMPLE)
    rewrite(tmp_path / "state.json", damage)
    with pytest.raises(StateMismatchError, match=DAMAGES[damage]):
        read_facts(tmp_path)


@pytest.mark.parametrize("other", ["gone", "object"])
def test_facts_with_any_value_changed_are_refused_by_the_name_of_their_file(
    other: str, tmp_path: Path
) -> None:
    save_run(tmp_path, nn.Linear(3, 2), (), make_facts(), make_history(), SAMPLE)
    refused = {}
    for place in changes(tmp_path / "state.json", ("facts",), [other]):
        try:
            read_facts(tmp_path)  # some changes give other facts that can be
        except StateMismatchError as err:
            refused[place] = str(err)
    assert len(refused) > 50
    assert all("state.json" in message for message in refused.values())


def test_a_truncated_file_is_called_so(tmp_path: Path) -> None:
    save_run(tmp_path, nn.Linear(3, 2), (), make_facts(), make_history(), SAMPLE)
    path = tmp_path / "state.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StateMismatchError, match="truncated"):
        read_facts(tmp_path)


def test_a_run_that_goes_on_does_not_take_over_what_another_version_wrote(tmp_path: Path) -> None:
    save_run(tmp_path, nn.Linear(3, 2), (), make_facts(), make_history(), SAMPLE)
    path = tmp_path / "state.json"
    path.write_text(path.read_text().replace('"version": 5', '"version": 4'))
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    with pytest.raises(CompressionError, match="version 4"):
        compress(network, 0.5, example_inputs=torch.zeros(1, 8), run_dir=tmp_path)
