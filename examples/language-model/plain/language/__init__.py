"""A causal language model learns to name the language of a line, at sites that hold mostly the languages of their region."""
