"""A name becomes a function from texts to numbers. Imports no model and no generation."""
