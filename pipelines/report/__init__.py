"""What people read about an output, from numbers alone."""
