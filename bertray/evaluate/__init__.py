"""Evaluation: labelled Parquet and a bundle in, metrics out."""
