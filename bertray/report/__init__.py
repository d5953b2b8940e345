"""A scored output folder as one page: what ran, what changed, why rows got their labels."""
