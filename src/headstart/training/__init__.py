"""The only loop, the optimisers and the checkpoints. It knows contracts, not methods."""
