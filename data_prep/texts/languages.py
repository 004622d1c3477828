"""Language of a text (py3langid, a naive Bayes classifier over byte n-grams; Lui and Baldwin 2011)."""

from functools import cache

UNSURE = "und"  # ISO 639-2 for undetermined
CONFIDENCE = 0.5  # lowest probability of a language; short texts often stay below it
CHARACTERS = 500  # read of a text


def language(text: str) -> str:
    """Returns the ISO 639 code; UNSURE below CONFIDENCE, zxx for no language (numbers, markup)."""
    return _identifier().classify(text[:CHARACTERS])[0]


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=CONFIDENCE)
