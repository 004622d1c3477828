"""Texts to hold two loadings of a model against each other with: any model, any language, any vocabulary."""

TEXTS = (
    "How do I reset a forgotten password?",
    "The reset link arrives by mail within a few minutes and is valid for one hour.",
    "warranty",
    "A returned device is checked, cleaned and tested again before it goes back into stock; its warranty starts anew.",
    "Quels documents faut-il pour ouvrir un compte ?",
    "Der Zug nach Wien fährt heute von Gleis 9 ab.",
    "東京の天気は晴れです。",
    "def area(radius): return 3.14159 * radius ** 2",
    "In 1869 Mendeleev left gaps in his table for elements that nobody had seen, and said what they would weigh.",
    "42",
    "Ingredients: flour, water, salt, yeast. Bake at 230 degrees for 35 minutes, the first ten with steam.",
    "Error 0x80070057: the parameter is incorrect.",
)
LENGTHS = (1, 5, 12, 30)  # tokens of the texts from the model's own vocabulary


def probe_texts(tokenizer) -> list[str]:
    """TEXTS, and for a vocabulary that knows none of their words some of its own, taken at equal distances."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    plain = [id_ for token, id_ in vocabulary if token not in tokenizer.all_special_tokens]
    drawn = [plain[k * len(plain) // sum(LENGTHS)] for k in range(sum(LENGTHS))]
    own = []
    for length in LENGTHS:
        own.append(tokenizer.decode(drawn[:length]))
        drawn = drawn[length:]
    return [*TEXTS, *own]
