"""Kept places → Parquet shards."""
