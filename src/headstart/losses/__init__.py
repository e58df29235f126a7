"""Losses as pure functions: tensors and floats in, one scalar out. Gathering over processes happens before the call."""
