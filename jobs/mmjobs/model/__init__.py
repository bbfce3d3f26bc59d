"""The model: vision encoder, projector and language model put together, and its tokenizer."""
