"""The text service: it reads a text in any script, and says bit by bit what it found, as language models do. No I/O.

It counts sentences and words (of scripts without spaces each character is one), finds the most frequent word, and
weighs words that are good or bad in a few languages. The answer comes as a stream of events: pieces of a sentence, then
the figures, then `[DONE]`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pipeline.sandbox.replies import NOT_JSON, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.sandbox.iris import Answer

_UNSPACED: Final = "\u3040-\u30ff\u3400-\u9fff"  # kana and Chinese characters
_BETWEEN: Final = (
    r"\s!-&(-/:-@\[-`{-~"
    r"\u00a1\u00ab\u00bb\u00bf\u0964\u060c\u061f\u2013\u2014\u2026\u201c-\u201e\u3000-\u303f\uff01-\uff0f\uff1f"
)
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^{_BETWEEN}{_UNSPACED}]+")
_END: Final = re.compile(r"[.!?\u0964\u061f\u2026]+(?=\W|$)|[\u3002\uff01\uff1f]+")

GOOD: Final = """
    good great love loved happy nice bon bonne aime beau gut liebe schön froh bueno buena feliz amo 好 爱 喜 乐
    хорошо люблю рад καλό αγαπώ अच्छा प्यार حب جميل 좋다 좋아요
"""
BAD: Final = """
    bad hate awful sad terrible mauvais mauvaise triste déteste schlecht traurig hasse malo mala odio 坏 恨 悲
    плохо грустно κακό λυπημένος बुरा दुखी سيئ حزين 싫다 나쁘다
"""
_MOODS: Final = {**dict.fromkeys(GOOD.split(), 1), **dict.fromkeys(BAD.split(), -1)}


class Asked(msgspec.Struct):
    """The request."""

    input: str


class Figures(msgspec.Struct, frozen=True):
    """What is found in a text; `mood` is from -1 to 1, `word` is empty where there is none."""

    sentences: int
    words: int
    word: str
    mood: float

    @property
    def told(self) -> str:
        """The same in words."""
        mood = "good" if self.mood > 0 else "bad" if self.mood < 0 else "even"
        most = f"; most frequent: {self.word}" if self.word else ""
        return f"sentences: {self.sentences}, words: {self.words}{most}; mood: {mood}"


_asked: Final = msgspec.json.Decoder(Asked)


class Text:
    """The service."""

    several = False

    def read(self, body: bytes, content_type: str = "") -> tuple[object, list[str]]:  # noqa: ARG002 - it is JSON
        """Return the text, and no uuid. Raises Refusal."""
        try:
            return "", [_asked.decode(body).input]
        except msgspec.ValidationError as error:
            raise Refusal("400 MR.0101", "input is missing, or no text") from error
        except NOT_JSON as error:
            raise Refusal("400 ModelArts.4105") from error

    def predict(self, rows: Sequence[str]) -> list[Figures]:
        """Look at each text."""
        return [figures(text) for text in rows]

    def peek(self, body: bytes, content_type: str = "") -> tuple[object, list[dict[str, Any]]]:  # noqa: ARG002
        """Return by which value a schedule may tell the row: `row:input=TEXT`."""
        try:
            return "", [{"input": _asked.decode(body).input}]
        except NOT_JSON:
            return "", []

    def write(self, answer: Answer[Figures]) -> bytes:
        """Return the stream."""
        [found] = answer.predictions
        pieces = re.findall(r"\s*\S+", found.told)
        events = [_event({"choices": [{"index": 0, "delta": {"content": piece}}]}) for piece in pieces]
        usage = _event({"choices": [], **msgspec.to_builtins(found)})
        opening = b"\xef\xbb\xbf: one event a word\r\n\r\nretry: 1000\r\n"
        return opening + b": \n".join([*events, usage]).replace(b"\n\n", b"\r\n\r\n", 1) + b"data: [DONE]\n\n"


def figures(text: str) -> Figures:
    """Look at a text."""
    words = [word.casefold() for word in _WORD.findall(text)]
    moods = [_MOODS[word] for word in words if word in _MOODS]
    most = max(Counter(words).items(), key=lambda one: one[1], default=("", 0))[0]
    sentences = len(_END.findall(text)) or int(bool(words))
    return Figures(sentences, len(words), most, sum(moods) / len(moods) if moods else 0.0)


def _event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
