"""What a person reads of a text: traces, explanations, pages. Imports records and numbers, no llama.cpp."""
