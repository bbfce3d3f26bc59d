"""The DeepSpeed engine: gradients, updates, frozen models, and the files of its checkpoints."""
