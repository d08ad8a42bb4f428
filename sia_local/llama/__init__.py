"""The only folder that touches llama.cpp: files, models, contexts, samplers, engine. Imports nothing above it."""
