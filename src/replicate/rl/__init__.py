"""Running RL: tasks, policies, rollouts, the objective, the trainer."""
