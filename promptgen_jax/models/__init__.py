"""Frozen, ported networks and how a folder of weights fills them; they know nothing of PromptGen."""
