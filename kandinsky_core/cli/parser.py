"""The commands and their options."""

from __future__ import annotations

import argparse
from pathlib import Path

from .expand import add_expand_command, add_expansion
from .generate import run_generate
from .kernel import run_build_kernel
from .lora import add_lora_commands
from .magcache import add_calibrate
from .options import add_attention, add_model, add_prompt, add_sampling, add_speed
from .plan import add_plan
from .show import run_identify, run_show
from .workflows import add_convert

EXAMPLES = """\
examples:
  %(prog)s "a red circle moves to the right"
  %(prog)s "it turns" --image ball.png --output ball.mp4
  %(prog)s "it stops" --extend ball.mp4 --overlap 5 --output longer.mp4
  %(prog)s "a fox in the snow" --model Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers --device cuda
  %(prog)s "a fox in the snow" --model kandinsky5lite_t2v_sft_5s.safetensors \\
      --vae hunyuan_video_vae.safetensors --text-encoder folder_with_text_encoders
  %(prog)s --prompts prompts.txt --output clips
"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kandinsky_core",
        description="Kandinsky 5: videos and images from prompts.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    make = commands.add_parser(
        "generate",
        help="make a video or an image",
        description="Make a video or an image. What is left out is as the checkpoint was made for.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_prompt(make, or_list=True)
    make.add_argument(
        "--output",
        type=Path,
        help=".mp4 or .png (default: output.mp4, output.png), or a folder for --prompts (outputs)",
    )
    make.add_argument("--sheet", type=Path, help="also write a contact sheet .png here")
    parts = add_model(make)
    parts.add_argument(
        "--vae-memory", type=float, metavar="GIB", help="most that the VAE may take (default: 8)"
    )
    add_sampling(make)
    add_attention(make)
    add_speed(make)
    add_expansion(make).add_argument(
        "--expand", action="store_true", help="have the text encoder write the prompt out first"
    )
    make.set_defaults(run=run_generate)
    add_plan(commands)
    add_calibrate(commands)

    show = commands.add_parser("show", help="say what a video or an image was made with")
    show.add_argument("path", type=Path, help="an .mp4 or .png of this program or of ComfyUI")
    show.set_defaults(run=run_show)

    add_expand_command(commands)

    tell = commands.add_parser("identify", help="say what a weight file is and what it needs")
    tell.add_argument("path", type=Path, help="a .safetensors or .gguf file, or a folder")
    tell.add_argument("--json", action="store_true", help="print JSON")
    tell.set_defaults(run=run_identify)

    add_lora_commands(commands)
    add_convert(commands)

    kernel = commands.add_parser(
        "build-kernel", help="compile the CPU kernel of sparse attention, once (optional)"
    )
    kernel.add_argument("--verbose", action="store_true", help="show what the compiler says")
    kernel.set_defaults(run=run_build_kernel)
    return parser
