"""The story demo alone: corpus, pretraining, prompts, judge. Imports no other room; cli and make's steps know it."""
