"""Reports for people about an output, drawn from numbers alone."""
