"""Texts by themselves: language, length and near duplicates."""
