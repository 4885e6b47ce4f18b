"""Humanline in other libraries' trainers. Each module needs the library of its name."""
