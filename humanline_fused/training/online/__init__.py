"""Online rounds: sampling from the policy, rewards, and conversion to examples."""
