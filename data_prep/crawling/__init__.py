"""Glossary pages from the web, wikis and saved files: sources, polite fetching, HTTP cache, charsets, output."""
