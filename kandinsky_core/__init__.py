"""Kandinsky 5 in plain PyTorch: models, text, flow, checkpoints and the pipeline. Knows no ComfyUI."""
