"""Alias of `kandinsky_core.training.stages.pretrain`, for commands that name this file."""

from .stages.pretrain import main

if __name__ == "__main__":
    main()
