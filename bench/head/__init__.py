"""The parts of lm_head.py: model, closed form, AdamW, Newton, table and figure."""
