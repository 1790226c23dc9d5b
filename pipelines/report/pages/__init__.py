"""The pages as HTML: one module a kind of page."""
