"""Alias of `kandinsky_core.training.stages.edit`, for commands that name this file."""

from .stages.edit import main

if __name__ == "__main__":
    main()
