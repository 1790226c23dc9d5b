"""Score files → the places of the responses that are kept. Text is never here."""
