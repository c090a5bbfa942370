"""The native CLIP: nano's encoder, Qwen2.5-VL with CLIP, and prompt expansion."""
