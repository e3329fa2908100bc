"""The one training loop and what it stands on: adapters and references, checkpoints, sources of batches."""
