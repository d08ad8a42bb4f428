"""The value model and its training in PyTorch. Imports data and formats."""
