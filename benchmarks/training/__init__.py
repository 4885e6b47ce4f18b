"""What a user's optimizer step costs: whole trainers beside each other, each in a process of its own."""
