"""Fine-tuning: labelled Parquet in, a bundle out."""
