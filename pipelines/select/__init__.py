"""Selects responses by their score files: in, scores; out, the places of the kept responses. Text is never read."""
