"""run a policy, score it, keep what happened"""
