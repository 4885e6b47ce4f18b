"""The cost of an optimizer step: whole trainers beside each other, each in a process of its own."""
