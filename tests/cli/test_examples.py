"""The examples of every ``--help``, and the commands on every page, are commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nnunet_mutual.cli import parser as cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = cli.build_parser()[1]


def examples(text: str) -> list[list[str]]:
    """The words after ``nnunet_mutual`` of every line that calls it, also inside of another command."""
    called = re.findall(r"^[^#\n]*?\bnnunet_mutual ([a-z_]+\b[^)#\n]*)", text, re.MULTILINE)
    return [shlex.split(line) for line in called]


def helped(command: str) -> list[list[str]]:
    """The examples at the end of a command's help."""
    (subparsers,) = (action for action in cli.build_parser()[0]._actions if isinstance(action.choices, dict))
    return examples(subparsers.choices[command].epilog)


def parse(words: list[str]) -> None:
    """Ends in a MutualError where the command line would end with exit status 2 before it begins."""
    cli._require_names(cli.build_parser()[0].parse_args(words))


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_every_help_can_be_parsed(command: str) -> None:
    found = helped(command)
    assert found and all(words[0] == command for words in found)
    for words in found:
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_every_page_can_be_parsed(page: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = examples("\n".join(blocks).replace("\\\n", " "))
    for words in found:
        parse(words)
    assert len(found) > 5 or page.name != "README.md"
