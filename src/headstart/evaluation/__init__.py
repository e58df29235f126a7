"""What features are worth: linear probes, nearest neighbours and scores, without training a backbone."""
