"""Data: what images there are, how they are split, and how they become batches."""
