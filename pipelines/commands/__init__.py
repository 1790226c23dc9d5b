"""What a command does beyond the graph."""
