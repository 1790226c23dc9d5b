"""What makes an output complete, and what is done with complete ones."""
