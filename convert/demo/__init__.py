"""The story demo alone: corpus, pretraining, prompts, judge. Nothing else imports it but the command line."""
