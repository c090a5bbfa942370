"""Alias of `kandinsky_core.training.stages.vae`, for commands that name this file."""

from .stages.vae import main

if __name__ == "__main__":
    main()
