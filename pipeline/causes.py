"""What most dead letters of an output died of, read from a part of them: any number of letters takes as long."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pipeline.errors import StorageFailed
from pipeline.forms import pieces, whole_lines
from pipeline.storage import storing
from schemas.values import readable, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.storage import Store
    from schemas.receipt import Receipt

_OBJECTS: Final = 16
_BYTES: Final = 16_000_000
"""Letters that are read of all objects together, give or take a piece of each."""
_GROUPS: Final = 1000
_LONGEST: Final = 200
_VARYING: Final = re.compile(r"""'[^']*'|"[^"]*"|\w*\d\w*""")
"""What differs from row to row in messages that say the same: values in quotes, numbers, ids."""


class Letter(msgspec.Struct, gc=False):
    """What is read of a dead letter."""

    kind: str
    status: int | None
    code: str | None
    message: str


_letter: Final = msgspec.json.Decoder(Letter)


class _Cause(NamedTuple):
    kind: str
    status: int | None
    code: str | None


class Causes:
    """Counts letters by cause, and by what their messages have in common, so that the example is no odd one.

    It keeps as much for any number of letters: where there are 1,000 causes, another one is not counted.
    """

    def __init__(self) -> None:
        self.letters = 0
        self._causes: Counter[_Cause] = Counter()
        self._alike: Counter[tuple[_Cause, str]] = Counter()
        self._examples: dict[tuple[_Cause, str], str] = {}

    def add(self, letters: Iterable[Letter]) -> None:
        """Count letters."""
        for letter in letters:
            cause = _Cause(letter.kind, letter.status, letter.code)
            alike = cause, _VARYING.sub("*", letter.message[:_LONGEST])
            self.letters += 1
            if cause in self._causes or len(self._causes) < _GROUPS:
                self._causes[cause] += 1
            if alike in self._alike or len(self._alike) < _GROUPS:
                self._alike[alike] += 1
                self._examples.setdefault(alike, letter.message)

    def told(self, dead: int) -> str:
        """Say what most letters died of, on one line; `dead` is how many there are, counted or not."""
        if not self.letters:
            return ""
        (cause, count), *_ = self._causes.most_common(1)
        of = f" of the {self.letters} looked at" if self.letters < dead else ""
        answered = readable(", ".join(str(one) for one in (cause.status, cause.code) if one is not None), _LONGEST)
        what = f"{count}{of} {cause.kind}" + (f" ({answered})" if answered else "")
        alike = next((one for one, _ in self._alike.most_common() if one[0] == cause), None)
        if alike is None:
            return what
        example = shown(" ".join(self._examples[alike].split()), _LONGEST)
        return f"{what}{', such as ' if count > 1 else ': '}{example}"


def cause_of(store: Store, receipts: Iterable[Receipt]) -> str:
    """Say on one line what most dead letters of receipts died of; nothing, where there are none that can be read."""
    found = Causes()
    dead = [one for one in receipts if one.errors]
    chosen = dead[:: -(-len(dead) // _OBJECTS)] if dead else []
    for receipt in chosen:
        with suppress(StorageFailed, ValueError):  # it is told beside an error, which counts for more
            for letters in _some(store, receipt, _BYTES // len(chosen)):
                found.add(letters)
    return found.told(sum(one.dead for one in dead))


def _some(store: Store, receipt: Receipt, size: int) -> Iterator[Sequence[Letter]]:
    """Read the first letters of a receipt, about so many bytes."""
    assert receipt.errors
    name = receipt.errors.name
    with storing("read", f"{store.uri}/{name}"), store.open(name) as file:
        for lines in pieces(file, whole_lines):
            yield _letter.decode_lines(lines)
            size -= len(lines)
            if size <= 0:
                return
