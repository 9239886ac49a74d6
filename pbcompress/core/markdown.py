"""Text that stays text in Markdown, whatever is in it: no markup, no HTML, no second line."""

import re
import unicodedata

__all__ = ["Markup", "as_code", "as_document", "as_paragraphs", "as_text", "without_controls"]

_TURNS = {  # of the direction: all marks with Unicode's property Bidi_Control
    *map(chr, (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
}
_ANYWHERE = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)|(?<=www)\.", re.I)
_AT_START = re.compile(r"\d+(?=[.)](?:\s|$))|[-+](?=[\s-]|$)|[#=>]")
_HTML = {"&": "&amp;", "<": "&lt;"}


class Markup(str):
    """A cell of a table that is Markdown already."""


def without_controls(text: str) -> str:
    r"""Return a text in one line, what moves a cursor or turns the direction replaced.

    Example:
        >>> without_controls("a\nb\x1b[2J")
        'a b\ufffd[2J'
    """
    line = " ".join(re.split(r"[\t\n\v\f\r\x85\u2028\u2029]+", text))
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in _TURNS else c for c in line
    )


def as_document(text: str) -> str:
    r"""Return a text of many lines, each of them `without_controls`.

    All that is shown to people goes through here at its end: what commands print, pages, cards and
    pictures. So no name or sentence of others can be forgotten.

    Example:
        >>> as_document("a\x1b[2J\n\u202eb\n")
        'a\ufffd[2J\n\ufffdb\n'
    """
    return "\n".join(map(without_controls, text.split("\n")))


def as_text(text: str, *, in_table: bool = False) -> str:
    r"""Return Markdown that shows a text as it is, in one line.

    Example:
        >>> as_text("<img src=x>"), as_text("a|b"), as_text("layer_1.conv"), as_text("# x")
        ('&lt;img src=x>', 'a\\|b', 'layer_1.conv', '\\# x')
    """
    line = _ANYWHERE.sub(lambda found: f"\\{found[0]}", without_controls(text).strip())
    line = re.sub("[&<]", lambda found: _HTML[found[0]], line)
    start = _AT_START.match(line)
    if start is None or in_table:
        return line
    if start[0][0].isdigit():
        return f"{start[0]}\\{line[start.end() :]}"
    return f"\\{line}"


def as_paragraphs(text: str) -> str:
    r"""Return Markdown that shows prose as it is; an empty line begins a paragraph.

    Example:
        >>> as_paragraphs("Digits: zero to nine.\n---\n\n# No others")
        'Digits\\: zero to nine. ---\n\n\\# No others'
    """
    parts = re.split(r"(?:\r?\n[ \t]*){2,}", text.strip())
    return "\n\n".join(as_text(part).replace(": ", "\\: ") for part in parts)


def as_code(text: str) -> Markup:
    r"""Return a cell of a table that shows a text as code.

    Example:
        >>> as_code("model.onnx"), as_code("a`b"), as_code("a|b")
        ('`model.onnx`', '``a`b``', 'a\\|b')
    """
    line = without_controls(text)
    if "|" in line:  # how it is escaped in code, renderers do not agree
        return Markup(as_text(line, in_table=True))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") or not line.strip() else ""
    return Markup(f"{fence}{space}{line}{space}{fence}")
