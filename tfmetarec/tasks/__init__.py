"""Episodes: small learning problems drawn from interactions."""

from tfmetarec.tasks.batching import Episodes, domain_episodes, item_episodes, user_episodes
from tfmetarec.tasks.episode import Episode, Features, Negatives, Support
from tfmetarec.tasks.table import FeatureTable, TaskTable

__all__ = [
    "Episode",
    "Episodes",
    "FeatureTable",
    "Features",
    "Negatives",
    "Support",
    "TaskTable",
    "domain_episodes",
    "item_episodes",
    "user_episodes",
]
