"""Where V comes from: value models, guides, several with weights. Imports llama and steering, not what generates."""
