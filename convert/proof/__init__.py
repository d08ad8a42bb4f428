"""PyTorch against GGUF: one pass over the junctions that spread and verify read. Imports formats, data and train."""
