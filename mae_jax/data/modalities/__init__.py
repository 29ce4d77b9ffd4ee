"""The conversion of examples of each modality to the arrays `[*size, c]` that a network sees."""
