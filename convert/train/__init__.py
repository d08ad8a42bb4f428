"""The value model and its training in PyTorch. Imports data and formats, never proof. `config` is free of torch."""
