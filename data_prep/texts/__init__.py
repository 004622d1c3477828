"""Texts by themselves: language, length, near duplicates, and the rules by which a tokenizer reads them."""
