"""Kandinsky 5 in plain PyTorch: models, text, flow, checkpoints, pipeline. Knows no ComfyUI."""
