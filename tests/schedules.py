"""Who chooses what happens next: everything in turn, or what was drawn."""

from __future__ import annotations

from contextlib import suppress


class KnownError(BaseException):
    """A play has come to a situation from which another one went on before; nothing may catch this on its way."""


class Every:
    """Plays a scenario once for each sequence of choices that it can make, but not twice from one situation.

    A scenario is a function of this object that does the same again when it is given the same choices: it calls
    `choose(n)` for a number below n, and may tell before, by `at`, everything that its future depends on.
    """

    def __init__(self):
        self._known = set()
        self._trail = []
        """The choices with which a play begins, and of how many each is one; behind them it takes the first ones."""
        self._made = []

    def play(self, scenario):
        """Play it until all is chosen."""
        while True:
            self._made = []
            with suppress(KnownError):
                scenario(self)
            while self._made and self._made[-1][0] + 1 == self._made[-1][1]:
                self._made.pop()
            if not self._made:
                return
            chosen, options = self._made.pop()
            self._trail = [*self._made, (chosen + 1, options)]

    def choose(self, options):
        """Return a number below `options`."""
        place = len(self._made)
        self._made.append(self._trail[place] if place < len(self._trail) else (0, options))
        return self._made[-1][0]

    def at(self, situation):
        """End the play if another one was here."""
        if len(self._made) >= len(self._trail):
            if situation in self._known:
                raise KnownError
            self._known.add(situation)


class Drawn:
    """Takes one number after the other, and at the end the first choice always."""

    def __init__(self, numbers):
        self._numbers = iter(numbers)

    def choose(self, options):
        """Return a number below `options`."""
        return next(self._numbers, 0) % options

    def at(self, situation):
        """Go on, wherever this is."""
