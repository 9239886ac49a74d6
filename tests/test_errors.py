"""Errors are whole wherever they are caught."""

import copy
import inspect
import pickle

import pytest

from pbcompress import errors

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.CompressionError)
]
ATTRIBUTES = {
    errors.TargetUnreachableError: {"smallest": 12.5},
    errors.UnsupportedLayerError: {"layer": "conv", "reason": "it is shared"},
    errors.ExportMismatchError: {"max_difference": 0.25},
}


def test_all_kinds_are_here() -> None:
    assert len(KINDS) == 7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("send", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_an_error_of_another_process_is_the_same(kind, send) -> None:
    attributes = ATTRIBUTES.get(kind, {})
    error = kind("It was asked; it was not there. Do this.", **attributes)
    error.add_note("while testing")
    found = send(error)
    assert type(found) is kind
    assert str(found) == str(error)
    assert found.args == error.args
    assert vars(found) == vars(error) == {**attributes, "__notes__": ["while testing"]}
