"""Scoring: Parquet shards in, the same shards with predictions out, each row exactly once."""
