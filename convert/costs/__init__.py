"""What a value model will cost before anything is run: arithmetic. Imports sia_local; only cli imports it."""
