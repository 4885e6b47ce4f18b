"""Checks of records: columns, messages and types of data."""
