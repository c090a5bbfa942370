"""Attention inside ComfyUI: which backend runs, and NABLA on models of others."""
