"""The DeepSpeed engine: gradients, updates, and the files that DeepSpeed writes and reads."""
