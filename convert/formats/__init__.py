"""Files: Hugging Face folders, GGUF, value checkpoints, export, quantization. Imports neither data, train nor proof."""
