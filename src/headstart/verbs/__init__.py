"""The verbs that make a run: pretrain, probe, finetune. Each is a command and a Python function."""
