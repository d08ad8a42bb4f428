"""sia_convert: from a reward to a proven GGUF value model. Runs offline; `sia_local` never imports it."""
