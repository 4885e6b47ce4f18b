"""Reading of records from files, folders, names and memory."""
