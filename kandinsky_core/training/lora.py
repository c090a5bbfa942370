"""Alias of `kandinsky_core.training.stages.lora`, for commands that name this file."""

from .stages.lora import main

if __name__ == "__main__":
    main()
