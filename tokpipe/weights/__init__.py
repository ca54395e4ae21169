"""A tokenizer's weights: finding, reading and converting them."""
