"""Trajectories: sampled, taken from data sets, scored, read for training. Imports sia_local, no training."""
