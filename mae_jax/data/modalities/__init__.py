"""How an example of each modality becomes the arrays `[*size, c]` that a network sees."""
