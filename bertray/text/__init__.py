"""Texts to token ids, and token ids to batches. Neither Ray nor torch in here."""
