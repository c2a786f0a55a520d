"""log-probs in, one loss per decision or pair out; pure"""
