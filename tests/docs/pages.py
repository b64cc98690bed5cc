"""What the pages print for a shell, found and taken apart."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Why a block is not run by a test, as its title tells the reader.
MARKS = {
    "needs a download",
    "needs GPUs",
    "needs GPUs and downloads",
    "needs a cluster",
    "needs a cluster and downloads",
    "takes minutes",
    "takes hours",
}
CI_RUNS = (
    "bash tools/test.sh",
    "bash tools/demo.sh",
    "ruff check",
)  # .ci/run does, in part by pre-commit
LANGUAGES = {"bash", "python", "py", "yaml", "text"}  # commands are in the first alone
SEPARATORS = {"&&", "||", ";", "|", "&", ";;"}


class Block(NamedTuple):
    """A fenced block."""

    page: Path
    line: int  # of the page, where it begins
    mark: str  # its title; "" for one that a test runs
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str = "bash") -> list[Block]:
    """All blocks of a language, of all pages: those of commands."""
    found = []
    for page in PAGES:
        text = page.read_text()
        fenced = rf'^```{language}(?: title="(.*)")?\n((?:(?!```).*\n)*)```$'
        for match in re.finditer(fenced, text, re.M):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match[1] or "", match[2]))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a block, without comments and redirections."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for word in [*lexer, ";"]:
            if word not in SEPARATORS:
                words.append(word)
            elif words:
                yield words
                words = []


def product_words(words: list[str]) -> list[str] | None:
    """The arguments of `sid-scale` in a command, whatever launches it; None: it starts no such."""
    if words[0] == "sid-scale":
        return words[1:]
    for place, word in enumerate(words[:-1]):
        if word in ("-m", "--module") and words[place + 1] == "sid_scale":
            return words[place + 2 :]
    return None


def run_settings(words: list[str]) -> list[str] | None:
    """What a command hands to a run's settings: the config's name, then key=value; or None."""
    if words[0] == "sbatch":
        scripts = [i for i, word in enumerate(words) if word.endswith("distill.sbatch")]
        return words[scripts[0] + 1 :] if scripts else None
    if "sid_scale.train" in words and "--config" in words:
        return words[words.index("--config") + 1 :]
    return None
