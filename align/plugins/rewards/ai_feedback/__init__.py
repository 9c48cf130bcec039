"""Answers judged by a model, by written principles: RLAIF."""

from align.plugins.rewards.ai_feedback.reward import AIFeedback

__all__ = ["AIFeedback"]
