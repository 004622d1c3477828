"""Russian words in Latin letters and Latin words in Russian ones, as people write them without the right keyboard."""

import random
import re

from data_prep.augmentation.phrases import in_case_of
from data_prep.common.errors import Failed

CYRILLIC = re.compile("[а-яё]+", re.IGNORECASE)
LATIN = re.compile("[a-z]+", re.IGNORECASE)
# Three habits that differ: dymokhod/yula, dymohod/iula, dymokhod/iula (the passport's).
SCHEMAS = ("wikipedia", "telegram", "icao_doc_9303")


def transliterate(text: str, draw: random.Random) -> str:
    """Writes all Russian words in Latin letters (iuliia, one of SCHEMAS), or all Latin words in Cyrillic (cyrtranslit).

    A text with both kinds of words gets either. Latin words without a full Cyrillic spelling stay. Raises Failed
    without the libraries.
    """
    try:
        import cyrtranslit
        import iuliia
    except ImportError:
        raise Failed("transliteration needs two small libraries: pip install 'embedfleet[augment]'") from None
    ways = [script for script in (CYRILLIC, LATIN) if script.search(text)]
    if not ways:
        return text
    if draw.choice(ways) is CYRILLIC:
        schema = iuliia.schemas.get(draw.choice(SCHEMAS))
        return CYRILLIC.sub(lambda word: in_case_of(word[0], schema.translate(word[0].lower())), text)

    def in_cyrillic(word: re.Match) -> str:
        cyrillic = cyrtranslit.to_cyrillic(word[0].lower(), "ru")
        return word[0] if LATIN.search(cyrillic) else in_case_of(word[0], cyrillic)

    return LATIN.sub(in_cyrillic, text)
