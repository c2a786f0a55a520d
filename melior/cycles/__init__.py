"""the closed loop: data, training, evaluation, gate, promotion"""
