"""The story demo alone: corpus, pretraining, prompts, judge. Imports no other room; only cli and make's steps know it."""
