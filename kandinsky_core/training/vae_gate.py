"""Alias of `kandinsky_core.training.studies.vae_gate`, for commands that name this file."""

from .studies.vae_gate import main

if __name__ == "__main__":
    main()
