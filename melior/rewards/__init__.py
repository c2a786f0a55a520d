"""a number, and a reason, for each output"""
