"""An OpenAI-compatible server around one engine thread. May import everything below cli; never llama_cpp or torch."""
