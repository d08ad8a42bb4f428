"""PyTorch against GGUF: one pass over the junctions that both read. Imports everything it compares."""
