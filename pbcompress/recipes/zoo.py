"""The model zoo: a folder for each recipe, with its result and the small model itself."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbcompress.core.bounded_files import is_file, read_bounded
from pbcompress.core.json_documents import parse_record, render_record
from pbcompress.core.markdown import as_code, as_document, as_text
from pbcompress.core.records import to_data
from pbcompress.core.tensor_files import write_bytes
from pbcompress.core.text_tables import figure
from pbcompress.errors import CompressionError
from pbcompress.onnx_files.contents import metadata_of
from pbcompress.packaging.model_card import result_sections
from pbcompress.recipes.builders import CHECKOUT
from pbcompress.recipes.recipe import Recipe
from pbcompress.report.headline import headline, speed
from pbcompress.result import CompressionResult
from pbcompress.runs.facts import RunFacts

__all__ = ["FOLDER", "Entry", "RecipeResult", "entries", "find_entry"]

FOLDER = CHECKOUT / "model_zoo" / "recipes"  # beside pbcompress, in a clone and in a wheel
KIND, VERSION = "pbcompress recipe result", 2

RECIPE_FILE, MODEL_FILE, RESULT_FILE, CARD_FILE = (
    "recipe.toml",
    "model.onnx",
    "result.json",
    "card.md",
)


@dataclass(frozen=True)
class RecipeResult:
    """The result of running a recipe.

    Attributes:
        facts: Of the run.
        sha256: Of the small model's file.
        max_difference: Largest absolute difference of the file's outputs from torch.
    """

    facts: RunFacts
    sha256: str
    max_difference: float


@dataclass(frozen=True)
class Entry:
    """One folder of the zoo.

    Attributes:
        folder: Holds ``recipe.toml``, and once it was run ``result.json``, ``model.onnx`` and
            ``card.md``.
    """

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def model(self) -> Path:
        """The small model."""
        return self.folder / MODEL_FILE

    def recipe(
        self, *, trust: Sequence[str] = (), changes: Mapping[str, Any] | None = None
    ) -> Recipe:
        """Read the recipe; see `Recipe.read`."""
        return Recipe.read(self.folder / RECIPE_FILE, trust=trust, changes=changes)

    def about(self) -> str:
        """Return the first line of the recipe, a comment that says what it is."""
        first = (self.folder / RECIPE_FILE).read_text().partition("\n")[0]
        return first.lstrip("# ").rstrip()

    def result(self) -> RecipeResult | None:
        """Return the result of its run; None before the first.

        Raises:
            StateMismatchError: The file is truncated, damaged, of another kind or version.
        """
        path = self.folder / RESULT_FILE
        if not is_file(path):
            return None
        return parse_record(RecipeResult, read_bounded(path), KIND, VERSION, str(path))

    def line(self) -> str:
        """Return the entry in a line: what it is, and its result."""
        result = self.result()
        if result is None:
            return f"{self.name}: {self.about()} Not run yet."
        before, after = result.facts.before, result.facts.after
        sizes = f"{before.cost.params:,} -> {after.cost.params:,} parameters"
        found = speed(result.facts)
        pace = "not timed" if found is None else f"{found.shown} times as fast"
        if found is not None and found.is_slower:
            pace += ", SLOWER than the original"
        assert before.score is not None  # every recipe names data
        assert after.score is not None
        return (
            f"{self.name}: {self.about()} {sizes}, {pace}, {result.facts.metric.name} on "
            f"{after.score.split} {figure(before.score.shown)} -> {figure(after.score.shown)}."
        )

    def facts(self) -> dict[str, Any]:
        """Return the entry as plain data."""
        result = self.result()
        found = None if result is None else to_data(result)
        return {"name": self.name, "about": self.about(), "result": found}

    def card(self) -> str:
        """Return the model card.

        Raises:
            CompressionError: The recipe was not run yet.
        """
        path = self.folder / CARD_FILE
        if not path.is_file():
            raise CompressionError(
                f"The recipe {self.name} has no model card, because nobody has run it. Run it: "
                f"pbcompress zoo run {self.name} --update"
            )
        return path.read_text()

    def update(self, result: CompressionResult) -> None:
        """Write model, result and card of a run into the folder."""
        report = result.export_onnx(self.model)
        found = RecipeResult(result.facts(), _sha256(self.model), report.max_difference)
        text = render_record(found, KIND, VERSION) + "\n"
        write_bytes(self.folder / RESULT_FILE, text.encode())
        write_bytes(self.folder / CARD_FILE, _card(self, found).encode())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _card(entry: Entry, result: RecipeResult) -> str:
    recipe, facts = entry.recipe(), result.facts
    notes = metadata_of(entry.model)
    card = "\n".join(
        [
            f"# {as_text(entry.name)}",
            "",
            as_text(entry.about()),
            "",
            "\n\n".join([*map(as_text, headline(facts)), *result_sections(facts)]),
            "",
            "## The file",
            "",
            f"`{MODEL_FILE}`, {entry.model.stat().st_size:,} bytes, SHA-256 `{result.sha256}`. "
            "Its outputs differ from those of the network in torch by at most "
            f"{result.max_difference:.1e}. It says of itself: "
            f"{', '.join(as_text(f'{name} {text}') for name, text in sorted(notes.items()))}.",
            "",
            "## How it came about",
            "",
            f"`pbcompress zoo run {entry.name} --update` with pbcompress {facts.pbcompress} and "
            f"torch {facts.torch}, seed {facts.seed}: one run. Network "
            f"{as_code(recipe.model['build'])} with {_call(recipe.model)}, data "
            f"{as_code(recipe.data['build'])} with {_call(recipe.data)}. Weights were chosen on "
            "the validation split; the test split was scored once.",
            "",
            "It is an example of the method and no product: it knows the classes of its data set, "
            "in the way in which that set shows them.",
            "",
        ]
    )
    return as_document(card)


def _call(table: Mapping[str, Any]) -> str:
    arguments = table.get("arguments", {})
    return as_text(", ".join(f"{name} = {json.dumps(value)}" for name, value in arguments.items()))


def entries(folder: Path) -> list[Entry]:
    """Return all entries by name.

    Raises:
        CompressionError: There are none.
    """
    found = [Entry(path.parent) for path in sorted(folder.glob(f"*/{RECIPE_FILE}"))]
    if not found:
        raise CompressionError(
            f"{folder} holds no recipes (folders with {RECIPE_FILE}). Pass another --folder, or "
            "none for the recipes of pbcompress."
        )
    return found


def find_entry(folder: Path, name: str) -> Entry:
    """Return an entry.

    Raises:
        CompressionError: There is no such entry; the message lists those that there are.
    """
    by_name = {entry.name: entry for entry in entries(folder)}
    if name not in by_name:
        raise CompressionError(f"The zoo has no recipe {name!r}; it has {', '.join(by_name)}.")
    return by_name[name]
