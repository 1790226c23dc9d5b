"""Score files → the places of what is kept. Text is never here."""
