"""The noisy quadratic model: the paper's figures drawn anew, and its claims checked."""
