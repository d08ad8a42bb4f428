"""The loop, and the ways to write a text with it. Imports llama, steering and values, nothing that reads its texts."""
