"""Sparse inference-time alignment on llama.cpp."""
