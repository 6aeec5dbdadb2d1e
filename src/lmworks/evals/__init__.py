"""What is a model worth: tasks, scores and honest statistics over any `Generator` and `Scorer`. Knows no engine."""
