"""In which language a text is written (py3langid, a naive Bayes classifier over byte n-grams; Lui and Baldwin 2011)."""

from functools import cache

UNSURE = "und"  # ISO 639-2 for undetermined
CONFIDENCE = 0.5  # below it a text is UNSURE: short texts mostly
CHARACTERS = 500  # of a text that are looked at


def language(text: str) -> str:
    """The ISO 639 code of the language, UNSURE where no language has the stated probability, zxx for what is none
    (numbers, markup)."""
    return _identifier().classify(text[:CHARACTERS])[0]


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=CONFIDENCE)
