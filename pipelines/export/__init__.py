"""Writes the kept responses to Parquet shards."""
