"""Text of a slot-filling corpus: `seq.in`, `seq.out` and `label`, one sentence a line."""

from pathlib import Path
from typing import NamedTuple

from data.errors import DataError

TOKENS_FILE, TAGS_FILE, INTENT_FILE = FILES = ("seq.in", "seq.out", "label")


class Sentence(NamedTuple):
    """One sentence: its words, a slot tag for each, and what the speaker wants."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    intent: str


def read_sentences(folder: Path) -> list[Sentence]:
    """Reads and checks a folder with one split.

    Raises:
        DataError: A file is missing, empty or not UTF-8, the files differ in their number of
            lines, a line is empty, or its tokens and tags differ in number.
    """
    tokens_file, tags_file, intent_file = (folder / name for name in FILES)
    lines = {file: _read_lines(file) for file in (tokens_file, tags_file, intent_file)}
    for file in (tags_file, intent_file):
        if len(lines[file]) != len(lines[tokens_file]):
            raise DataError(
                f"{file}: found {len(lines[file])} lines, expected {len(lines[tokens_file])} as "
                f"in {tokens_file.name}"
            )
    sentences = []
    for number, row in enumerate(zip(*lines.values(), strict=True), start=1):
        tokens, tags, intent = (tuple(line.split()) for line in row)
        if not tokens:
            raise DataError(f"{tokens_file}: line {number}: found no words, expected a sentence")
        if len(tags) != len(tokens):
            raise DataError(
                f"{tags_file}: line {number}: found {len(tags)} tags, expected {len(tokens)}, one "
                f"for each word in {tokens_file.name}"
            )
        if len(intent) != 1:
            raise DataError(
                f"{intent_file}: line {number}: found {len(intent)} words, expected one intent"
            )
        sentences.append(Sentence(tokens, tags, intent[0]))
    return sentences


def _read_lines(file: Path) -> list[str]:
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{file}: found no such file, expected one sentence a line") from error
    except OSError as error:
        raise DataError(f"{file}: found it unreadable ({error.strerror})") from error
    # Only a newline ends a line: splitlines() would also split at characters that a word may
    # hold, and shift all numbers after it.
    lines = content.removesuffix(b"\n").split(b"\n")
    if lines == [b""]:
        raise DataError(f"{file}: found an empty file, expected one sentence a line")
    decoded = []
    for number, line in enumerate(lines, start=1):
        try:
            decoded.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file}: line {number}: found the byte 0x{line[error.start]:02x}, expected UTF-8"
            ) from error
    return decoded
