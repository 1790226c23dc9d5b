"""Files on any store: opening and listing, atomic publishing, removing, and the files of models."""
