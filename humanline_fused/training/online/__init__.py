"""Online rounds: sampling from the policy, rewards, and the examples they become."""
