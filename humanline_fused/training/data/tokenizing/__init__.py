"""Rendering and tokenisation of rows, compared with what was written."""
