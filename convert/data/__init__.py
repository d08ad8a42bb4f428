"""Trajectories: sampled, taken from data sets, scored, read for training. Imports formats; torch in hf_reward alone."""
