# Every target is one call of scripts/manage.py, which does the same on Windows: python scripts/manage.py demo
# PROMPT and SEED reach it through the environment: make demo PROMPT="a red circle moves right"
PYTHON ?= python3
MANAGE := $(PYTHON) scripts/manage.py
export PROMPT SEED COMFYUI_PATH

.PHONY: demo comfy test bench mutants docs setup
demo:  ; $(MANAGE) demo
comfy: ; $(MANAGE) comfy
test:  ; $(MANAGE) test $(ARGS)
bench: ; $(MANAGE) bench $(ARGS)
docs:  ; $(MANAGE) docs
mutants: ; $(MANAGE) mutants $(ARGS)
setup: ; $(MANAGE) setup --profile test
