"""Everything that touches storage: opening and listing, atomic publishing, score files, claim and manifest."""
