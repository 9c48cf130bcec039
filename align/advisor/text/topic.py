"""The topic of a text: words of a domain, neither small ones nor those of models, money and plans.

`The board would like RLHF by Q3` has none of these, and the goal stays unknown. `Every message opens with an
apology` has: a topic shows the purpose of a model, even in words that no phrase of the lexicon covers.
"""

from __future__ import annotations

from collections.abc import Sequence

from align.advisor.project_facts import Evidence
from align.advisor.text.lexicon import lexicon
from align.advisor.text.sentence_context import SentenceContext, shift_span
from align.advisor.text.sentences import Sentence

WORDS = 6
"""Different domain words from which on a text has a topic."""
SHORT = 4
"""Letters; shorter words do not count as domain words."""


class Topic:
    """Collect the domain words of a text, sentence by sentence, by a language's list of common words."""

    def __init__(self, languages: Sequence[str]) -> None:
        self._common = lexicon(languages[0]).common
        self._words: set[str] = set()
        self._most: tuple[int, Evidence] | None = None

    def add(self, scene: SentenceContext, start: int) -> None:
        """Add a sentence, with its start in the text."""
        own = [at for at in range(len(scene.sentence.words)) if self._own(scene.sentence, at)]
        new = {scene.sentence.words[at] for at in own}
        self._words |= new
        if own and (self._most is None or len(new) > self._most[0]):
            self._most = len(new), shift_span(scene.evidence("_goal", True, own[0], own[-1] + 1), start)

    def evidence(self) -> list[Evidence]:
        """Return the sentence with most domain words as a goal; nothing where the text has too few."""
        return [self._most[1]] if self._most and len(self._words) >= WORDS else []

    def _own(self, sentence: Sentence, at: int) -> bool:
        word = sentence.words[at]
        known = word in self._common or word.removesuffix("s") in self._common or "'" in word
        return bool(self._common) and sentence.kinds[at] == "word" and len(word) >= SHORT and not known
