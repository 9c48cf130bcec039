"""The lexicons as data: every label is one that the engine reads, every phrase can match."""

from typing import Any, get_args

import pytest
import yaml

from align.advisor.text.languages import languages_of
from align.advisor.text.lexicon import FOLDER, LANGUAGES, Lexicon, lexicon
from align.advisor.text.sentences import split_words
from align.schemas.project import DataKind, Method, Project, Tried

ENGINE = "".join((FOLDER.parent / f"{name}.py").read_text(encoding="utf-8") for name in ("cues", "resolve"))
LEXICONS = sorted({*LANGUAGES, "xx"})


def content(language: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / f"{language}.yaml").read_text(encoding="utf-8"))
    return loaded


def phrases(tree: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    found = []
    for key, below in tree.items():
        label = f"{above}{key}"
        found += phrases(below, f"{label}:") if isinstance(below, dict) else [(label, str(phrase)) for phrase in below]
    return found


def is_field(path: str) -> bool:
    model: Any = Project
    for key in path.split("."):
        if key not in getattr(model, "model_fields", {}):
            return False
        model = model.model_fields[key].annotation
    return True


@pytest.mark.parametrize("language", LEXICONS)
def test_every_label_is_one_of_the_english_ones_and_every_cue_is_a_field(language: str) -> None:
    english = {label for label, _ in phrases(content("en")["phrases"])}
    for label, _ in phrases(content(language)["phrases"]):
        assert label in english or label.startswith(("cue:", "not:")), label
        if label.startswith("cue:"):
            field, _, value = label.removeprefix("cue:").partition("=")
            kind, _, name = field.partition(".")
            known = {
                "method": name in get_args(Method),
                "tried": name in get_args(Tried),
                "tuning": name in ("full", "lora", "qlora"),
                "data": name in (*get_args(DataKind), "any"),
            }
            hint = f'"{field}"' in ENGINE or f'"_{field}"' in ENGINE
            assert known.get(kind) or hint or (is_field(field) and value), label


@pytest.mark.parametrize("language", LEXICONS)
def test_every_phrase_finds_itself(language: str) -> None:
    """A phrase written out with the first of each choice, and a word for each star, is found under its label."""
    classes = {name: words.split() for name, words in content(language).get("classes", {}).items()}
    known = Lexicon(content(language))

    def example(part: str) -> str:
        first = part.removeprefix("?").split("|")[0]
        while first[0] == "@":
            first = classes[first[1:]][0]
        return "7" if first == "<number>" else first.replace("*", "ena")

    for label, phrase in phrases(content(language)["phrases"]):
        text = " ".join(example(part) for part in phrase.split() if part != "...")
        assert label in {match.label for match in known.find(split_words(text))}, (label, phrase, text)


@pytest.mark.parametrize(
    ("text", "languages", "unread"),
    [
        ("We have a model and it is fine.", ["en"], []),
        ("Wir haben ein Modell und es ist gut.", ["de"], []),
        ("Tenemos un modelo y es muy bueno para todos.", ["es"], []),
        ("我们有一个模型，效果还不错。", ["zh"], []),
        ("Nous avons un modèle et nous voulons l'adapter avec des données pour nos clients.", [], ["fr"]),
        ("У нас есть модель, и мы хотим её обучить.", [], ["ru"]),
        ("モデルを微調整したいのですが、データは足りますか。", [], ["ja"]),
        ("8x80GB", ["en"], []),
        (
            "We run a help desk and the answers are what our customers read. Wir haben aber auch viele Dokumente, die "
            "nicht auf Englisch sind und von den Kollegen kommen.",
            ["de", "en"],
            [],
        ),
    ],
)
def test_languages(text: str, languages: list[str], unread: list[str]) -> None:
    assert languages_of(text) == (languages, unread)


def test_a_lexicon_is_read_once() -> None:
    assert lexicon("en") is lexicon("en")
