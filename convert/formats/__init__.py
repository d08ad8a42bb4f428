"""Files: Hugging Face folders, GGUF, official checkpoints, export, quantization. Imports no training."""
