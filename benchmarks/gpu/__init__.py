"""One command that tries everything on a GPU: see __main__.py."""
