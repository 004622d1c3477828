"""Variants of queries: typos, synonyms, case, punctuation, transliteration."""
