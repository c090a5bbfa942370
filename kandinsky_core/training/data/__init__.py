"""What the stages train on: latents of rendered scenes and of edits, in batches."""
