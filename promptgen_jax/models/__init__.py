"""Ported networks as Linen modules; they know nothing of PromptGen."""
