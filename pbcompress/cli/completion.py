"""The command that writes a completion script for a shell."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pbcompress.cli.arguments import Answer, add_command

__all__ = ["add_completion", "words"]

BASH = """\
_pbcompress() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} path="" word
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$path $word" in {nested}) path="$path $word";; esac
  done
  local words=""
  case "$path" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _pbcompress pbcompress
"""
HEADS = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}


def add_completion(commands: Any, make_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add ``pbcompress completion``."""

    def complete(arguments: argparse.Namespace) -> Answer:
        script = _script(arguments.shell, words(make_parser()))
        return Answer(script, lambda: {"shell": arguments.shell, "script": script})

    completion = add_command(
        commands,
        "completion",
        complete,
        help="print a script that completes commands and options in your shell",
        description='Print the script. bash and zsh: eval "$(pbcompress completion bash)"; fish: '
        "pbcompress completion fish | source.",
    )
    completion.add_argument("shell", choices=["bash", "zsh", "fish"], help="your shell")


def words(parser: argparse.ArgumentParser) -> dict[tuple[str, ...], list[str]]:
    """Return what may come after each command: jobs of it, choices and options."""
    return dict(_walk(parser, ()))


def _walk(
    parser: argparse.ArgumentParser, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    found: list[str] = []
    inner: Mapping[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            inner = action.choices
            found += inner
        elif action.option_strings:
            found += [option for option in action.option_strings if option.startswith("--")]
        else:
            found += map(str, action.choices or ())
    yield path, found
    for name, own in inner.items():
        yield from _walk(own, (*path, name))


def _script(shell: str, tree: dict[tuple[str, ...], list[str]]) -> str:
    if shell == "fish":
        return "\n".join(_fish(tree))
    nested = "|".join(f'"{_joined(path)}"' for path in tree if path)
    cases = "\n".join(
        f'    "{_joined(path) if path else ""}") words="{" ".join(own)}";;'
        for path, own in tree.items()
    )
    return HEADS[shell] + BASH.format(nested=nested, cases=cases)


def _joined(path: tuple[str, ...]) -> str:
    return "".join(f" {word}" for word in path)


def _fish(tree: dict[tuple[str, ...], list[str]]) -> Iterator[str]:
    for path, own in tree.items():
        inner = [child[-1] for child in tree if child[:-1] == path and child]
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in path)
        condition = seen or "__fish_use_subcommand"
        if inner and path:
            condition += f"; and not __fish_seen_subcommand_from {' '.join(inner)}"
        for word in own:
            what = f"-l {word[2:]}" if word.startswith("--") else f"-f -a {word}"
            yield f"complete -c pbcompress -n '{condition}' {what}"
